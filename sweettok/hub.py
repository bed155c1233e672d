"""Where files of weights are: a folder, or a repository of the Hugging Face hub, which also takes uploads.

huggingface_hub reads its own environment variables: HF_HUB_OFFLINE, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import sweettok

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # of a model; `sweettok.pretrained` says what they hold
LOGIN = "log in with `hf auth login`, or give token="
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Folder:
    """A folder on this machine."""

    path: Path

    def fetch(self, file: str) -> Path:
        """Where a file is; FileNotFoundError where it is not."""
        if self.path.is_file():
            raise FileNotFoundError(f"{self.path} is a file: give its folder")
        if not (self.path / file).is_file():
            raise FileNotFoundError(f"{self.path} holds no {file}: give a folder written by save_pretrained")
        return self.path / file

    def pinned(self, file: Path) -> Folder:
        """Folders have no versions."""
        return self


@dataclass(frozen=True)
class Repository:
    """A repository of the hub, "user/name".

    revision: a branch, tag or commit; None is the main branch. cache_dir: instead of the usual cache. token: instead
    of that of the login. local_files_only: read the cache alone. ValueError for another kind of name.
    """

    name: str
    revision: str | None = None
    cache_dir: str | Path | None = None
    token: str | None = None
    local_files_only: bool = False

    def __post_init__(self):
        if not REPOSITORY.fullmatch(self.name):
            raise ValueError(f"a repository of the hub is named user/name, got {self.name!r}")

    def fetch(self, file: str) -> Path:
        """Where the cache holds a file, newly fetched if the hub can be reached and has another one.

        Raises OSError saying why it cannot be had, FileNotFoundError where it is not there, ValueError for a name that
        the hub does not take.
        """
        from huggingface_hub import hf_hub_download

        with self._plain_errors(file):
            return Path(hf_hub_download(
                self.name, file, revision=self.revision, cache_dir=self.cache_dir, token=self.token,
                local_files_only=self.local_files_only, library_name="sweettok", library_version=sweettok.__version__,
            ))  # fmt: skip

    def pinned(self, file: Path) -> Repository:
        """The commit that a fetched file is of."""
        return replace(self, revision=file.parent.name)

    def has(self, file: str) -> bool:
        """Whether the repository holds a file. Raises as `fetch` does."""
        from huggingface_hub import HfApi

        with self._plain_errors(file):
            return HfApi(token=self.token).file_exists(self.name, file, revision=self.revision)

    def create(self, private: bool | None) -> None:
        """Make the repository and its branch `revision`, where they are not there. Raises as `fetch` does."""
        from huggingface_hub import HfApi

        with self._plain_errors():
            api = HfApi(token=self.token)
            api.create_repo(self.name, private=private, exist_ok=True)
            if self.revision is not None:
                api.create_branch(self.name, branch=self.revision, exist_ok=True)

    def upload(self, folder: Path, message: str) -> str:
        """Add the files of a folder in one commit; returns its address. Raises as `fetch` does."""
        from huggingface_hub import HfApi

        with self._plain_errors():
            return HfApi(token=self.token).upload_folder(
                repo_id=self.name, folder_path=folder, revision=self.revision, commit_message=message
            ).commit_url  # fmt: skip

    @contextmanager
    def _plain_errors(self, file: str = "") -> Iterator[None]:
        """Everything that huggingface_hub raises, as one line that says what to do."""
        from huggingface_hub import errors

        name, of_revision = self.name, f" in revision {self.revision}" if self.revision else ""
        try:
            yield
        except errors.HFValidationError as error:
            raise ValueError(f"{name} is no name of a repository: {first_line(error)}") from error
        except errors.GatedRepoError as error:
            raise PermissionError(f"{name} is gated: ask for access on its page of the hub, and {LOGIN}") from error
        except errors.RepositoryNotFoundError as error:
            raise FileNotFoundError(f"{name} is no folder here and no repository that the hub shows: check the name; "
                                    f"if it is private, {LOGIN}") from error  # fmt: skip
        except errors.RevisionNotFoundError as error:
            raise FileNotFoundError(f"{name} has no revision {self.revision!r}") from error
        except errors.LocalEntryNotFoundError as error:
            asked = "was not asked (local_files_only)" if self.local_files_only else "cannot be reached"
            raise FileNotFoundError(
                f"{name} is no folder here, its {file}{of_revision} is not in the cache, and the "
                f"hub {asked}: fetch it once with a connection, or give a folder"
            ) from error
        except errors.EntryNotFoundError as error:
            raise FileNotFoundError(f"{name} holds no {file}{of_revision}: push_to_hub did not write it") from error
        except (errors.HTTPError, OSError) as error:
            code = getattr(getattr(error, "response", None), "status_code", None)
            if code in (401, 403):
                raise PermissionError(f"the hub lets this login neither see nor change {name}: {LOGIN}") from error
            raise OSError(f"{name}: the hub cannot be used: {first_line(error)}") from error


def local(source: str | Path) -> Path:
    """The folder of a model: `source` itself, or where the cache holds its files of the repository, fetched if need be.

    Raises what `find` and `fetch` raise.
    """
    place = find(source)
    return place.pinned(place.fetch(CONFIG)).fetch(WEIGHTS).parent


def find(
    source: str | Path,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> Folder | Repository:
    """The folder `source`, if there is one, or else the repository of that name; see `Repository` for the rest.

    Raises FileNotFoundError where it can be neither, ValueError for a revision of a folder.
    """
    folder = Path(source)
    if folder.exists():
        if revision is not None:
            raise ValueError(f"{source} is a folder here, which has no revision {revision!r}: leave it out")
        return Folder(folder)
    if isinstance(source, Path) or not REPOSITORY.fullmatch(source):
        raise FileNotFoundError(f"there is no folder {source}: give one written by save_pretrained, or user/name of a "
                                "repository of the hub")  # fmt: skip
    return Repository(source, revision, cache_dir, token, local_files_only)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
