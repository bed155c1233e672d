"""Base class of models that are saved to folders and loaded from folders or the Hugging Face Hub.

config.json holds "model" (the class), "format", "sweettok" (the version that wrote it), "weights_sha256" (of
model.safetensors), "training" (facts about the training run, or null), "config" and "assets" (such as the word lists).
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from huggingface_hub import HfApi, errors, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

import sweettok
from sweettok import config as configs
from sweettok.hub import card
from sweettok.hub.shipped import find_shipped
from sweettok.store import sha256, write_aside

if TYPE_CHECKING:
    from typing_extensions import Self

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
LOGIN = "log in with `hf auth login`, or pass token="


# Entry i changes the content of config.json and the tensors, in place, from format i + 1 to format i + 2.
MIGRATIONS: list[Callable[[dict[str, Any], dict[str, Tensor]], None]] = []
FORMAT = len(MIGRATIONS) + 1


class Pretrained(nn.Module):
    """A model with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    A subclass sets `config_class` and `card_info`, keeps its configuration as `self.config`, and overrides `assets`
    and `build` if it needs more than the configuration to be rebuilt.
    """

    config_class: type
    card_info: ClassVar[card.CardInfo]
    _loaded: tuple[str, dict[str, Any] | None] | None = None  # SHA-256 of the loaded weights, and "training"

    def assets(self) -> dict[str, Any]:
        """JSON data that the model needs besides its tensors and configuration."""
        return {}

    @classmethod
    def build(cls, config: Any, assets: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """A model that `tensors` can be loaded into."""
        return cls(config)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        report: str | Path | Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        license: str | None = None,
        name: str = "path/to/this/folder",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write config.json, model.safetensors and the model card README.md into `folder`.

        A card that was edited by hand is kept.

        Args:
            report: evaluation report of these weights, shown in the card: a JSON file of `sweettok eval`, or its
                content.
            training: facts about the training run for the card and config.json, as JSON data. Default: those loaded
                with the weights, if the weights are unchanged.
            license: license of the weights for the card, a license identifier of the Hub.
            name: folder or repository in the card's example of `from_pretrained`.
            dtype: of the floating-point tensors in the file; None: as they are. `from_pretrained` loads all as float32.
                With torch.float16 the saved model is another one than this: its hashes differ, and some ids may.

        Raises:
            ValueError: the report is of other weights, the card that should show it was edited by hand, or a weight is
                too large for `dtype`.
        """
        keeps_card = _keeps_card(Path(folder, CARD), report)
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in self.state_dict().items()}
        weights = save(state if dtype is None else {key: _cast(key, state[key], dtype) for key in state})
        digest = hashlib.sha256(weights).hexdigest()
        if training is None and self._loaded is not None:
            unchanged = self._loaded[0] in (digest, hashlib.sha256(save(state)).hexdigest())
            training = self._loaded[1] if unchanged else None
        saved = {
            "model": type(self).__name__,
            "format": FORMAT,
            "sweettok": sweettok.__version__,
            "weights_sha256": digest,
            "training": training,
            "config": configs.to_dict(self.config),
            "assets": self.assets(),
        }
        try:
            text = json.dumps(saved, indent=1, ensure_ascii=False)
        except TypeError as error:
            raise ValueError(f"training must be plain text, numbers and lists: {error}") from error
        page = card.write_card(self, name, digest, training, report, license)
        # Weights first: if this is interrupted, their hash does not match the old config.json, and loading fails.
        files = {WEIGHTS: weights, CONFIG: text.encode(), **({} if keeps_card else {CARD: page.encode()})}
        for file, content in files.items():
            with write_aside(Path(folder, file)) as aside:
                aside.write_bytes(content)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        report: str | Path | Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        license: str | None = None,
    ) -> str:
        """Upload the files of `save_pretrained` to the Hub in one commit, and return the URL of the commit.

        Args:
            repo_id: "user/name"; the repository is created if needed.
            private: visibility of a new repository. Default: that of the account.
            token: access token. Default: that of `hf auth login` or HF_TOKEN.
            revision: branch to commit to, created if needed. Default: the main branch.
            report, training, license: as in `save_pretrained`.

        Raises:
            ValueError: the report or the name is wrong.
            OSError: the Hub cannot be reached or refuses the request.
        """
        if not REPO_ID.fullmatch(repo_id):
            raise ValueError(f"expected a repository named user/name, got {repo_id!r}")
        api = HfApi(token=token, library_name="sweettok", library_version=sweettok.__version__)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            self.save_pretrained(folder, report=report, training=training, license=license, name=repo_id)
            with _readable_errors(repo_id, CARD, revision):
                api.create_repo(repo_id, private=private, exist_ok=True)
                if revision is not None:
                    api.create_branch(repo_id, branch=revision, exist_ok=True)
                if api.file_exists(repo_id, CARD, revision=revision):
                    page = Path(api.hf_hub_download(repo_id, CARD, revision=revision))
                    if _keeps_card(page, report):
                        (folder / CARD).write_bytes(page.read_bytes())
                message = commit_message or f"{type(self).__name__} of sweettok {sweettok.__version__}"
                return api.upload_folder(
                    repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message
                ).commit_url

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a model that `save_pretrained` or `push_to_hub` wrote, onto the CPU, in evaluation mode.

        Args:
            source: a folder, or if no such folder exists, "mini" (the model that is part of this package, see
                docs/mini.md) or the Hub repository "user/name". Downloads are cached by huggingface_hub; without a
                connection the cached files are used.
            revision: branch, tag or commit of the repository.
            cache_dir: another folder for the cache.
            token: access token. Default: that of `hf auth login` or HF_TOKEN.
            local_files_only: use cached files only.

        Raises:
            FileNotFoundError: there is no such folder, repository, revision or file.
            OSError: the Hub cannot be reached or refuses access.
            ValueError: the files are of another model or a newer format, damaged, or of two different saves.
        """
        where = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
        folder = model_folder(source, cls.__name__, revision=revision, **where)
        saved = _parse_config(folder / CONFIG, source, cls.__name__)
        try:
            loaded = load_file(folder / WEIGHTS)
        except SafetensorError as error:
            raise ValueError(f"{source}: {WEIGHTS} is damaged: {error}") from error
        # Word graphs are built of these tensors, not only copied from them.
        tensors = {key: value.float() if value.is_floating_point() else value for key, value in loaded.items()}
        try:
            for migrate in MIGRATIONS[saved["format"] - 1 :]:
                migrate(saved, tensors)
            if saved["weights_sha256"] != sha256(folder / WEIGHTS):
                raise ValueError("they are of different saves, or one of them is damaged")
            model = cls.build(configs.build(cls.config_class, saved["config"]), saved["assets"], tensors)
            model.load_state_dict(tensors)
            model._loaded = saved["weights_sha256"], saved["training"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{source}: {CONFIG} and {WEIGHTS} do not fit together: {shorten(str(error), 400)}"
            ) from error
        return model.eval()


def model_folder(source: str | Path, *models: str, revision: str | None = None, **where: Any) -> Path:
    """Local folder with config.json and model.safetensors of a folder, a model of the package or a Hub repository.

    Args:
        source: as in `Pretrained.from_pretrained`, which raises the same errors.
        models: accepted model classes, by name; checked before the weights are downloaded.
        revision, where: as in `Pretrained.from_pretrained`.
    """
    source = find_shipped(source, *models)
    config_file = _find_file(source, CONFIG, revision, **where)
    if models:
        _parse_config(config_file, source, *models)
    commit = None if Path(source).exists() else config_file.parent.name  # both files must be of one commit
    return _find_file(source, WEIGHTS, commit, **where).parent


def read_config(source: str | Path, *models: str) -> dict[str, Any]:
    """Content of the config.json of a saved model; `source`, `models`: as in `model_folder`."""
    source = find_shipped(source, *models)
    return _parse_config(_find_file(source, CONFIG), source, *models)


def _parse_config(path: Path, source: str | Path, *models: str) -> dict[str, Any]:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{source}: {CONFIG} is damaged: {error}") from error
    name, version = (saved.get("model"), saved.get("format")) if isinstance(saved, dict) else (None, None)
    if name not in models:
        expected = " or ".join(map(repr, models))
        raise ValueError(f"{source} holds {name!r}, expected {expected}: give a folder that its save_pretrained wrote")
    if type(version) is not int or version < 1:
        raise ValueError(f"{source} is in format {version!r}, expected a whole number of at least 1")
    if version > FORMAT:
        raise ValueError(
            f"{source} is in format {version}, of sweettok {saved.get('sweettok')}; sweettok {sweettok.__version__} "
            f"reads up to format {FORMAT}: update sweettok"
        )
    return saved


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` as `dtype` if it is a floating-point one. ValueError for finite values that `dtype` cannot hold."""
    cast = tensor.to(dtype) if tensor.is_floating_point() else tensor
    if not cast.isfinite().equal(tensor.isfinite()):
        raise ValueError(f"{name} has values up to {tensor.abs().max():g}, too large for {dtype}: save as float32")
    return cast


def _keeps_card(page: Path, report: Any) -> bool:
    """Whether a card was edited by hand. ValueError if so and there is a report to show."""
    edited = card.is_edited(page)
    if edited and report is not None:
        raise ValueError(
            f"{page.name} was edited by hand and is kept, so it cannot show the report: delete it, or omit the report"
        )
    return edited


def _find_file(source: str | Path, file: str, revision: str | None = None, **where: Any) -> Path:
    """Local path of a file of the folder or repository `source`, downloaded if needed."""
    folder = Path(source)
    if folder.exists():
        if revision is not None:
            raise ValueError(f"{source} is a folder, which has no revision {revision!r}: omit the revision")
        if not (folder / file).is_file():
            problem = "is a file" if folder.is_file() else f"holds no {file}"
            raise FileNotFoundError(f"{source} {problem}: give a folder written by save_pretrained")
        return folder / file
    if isinstance(source, Path) or not REPO_ID.fullmatch(source):
        raise FileNotFoundError(
            f"there is no folder {source}: give one written by save_pretrained, or user/name of a Hub repository"
        )
    with _readable_errors(source, file, revision):
        where = {"library_name": "sweettok", "library_version": sweettok.__version__, **where}
        return Path(hf_hub_download(source, file, revision=revision, **where))


# Errors of huggingface_hub (subclasses first), and the error and message raised instead.
ERRORS: list[tuple[type[Exception], type[Exception], str]] = [
    (errors.HFValidationError, ValueError, "{repo} cannot be the name of a repository: {error}"),
    (errors.GatedRepoError, PermissionError, "{repo} is gated: ask for access on its Hub page, then {login}"),
    (
        errors.RepositoryNotFoundError,
        FileNotFoundError,
        "{repo} is neither a folder nor a repository that you can read: check the name; if it is private, {login}",
    ),
    (errors.RevisionNotFoundError, FileNotFoundError, "{repo} has no revision {revision!r}"),
    (
        errors.LocalEntryNotFoundError,
        FileNotFoundError,
        "{repo} is not a folder, its {file} is not in the cache, and the Hub cannot be reached or was not contacted: "
        "download it once with a connection",
    ),
    (errors.EntryNotFoundError, FileNotFoundError, "{repo} holds no {file}"),
]


@contextmanager
def _readable_errors(repo: str, file: str, revision: str | None) -> Iterator[None]:
    """Turn errors of huggingface_hub, whose messages have many lines, into one line with what to do."""
    try:
        yield
    except (errors.HFValidationError, errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        known = [(kind, text) for caught, kind, text in ERRORS if isinstance(error, caught)]
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            known.append((PermissionError, "no permission to read or change {repo} on the Hub: {login}"))
        known.append((OSError, "{repo}: the Hub cannot be used: {error}"))
        kind, text = known[0]
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        file = f"{file} of revision {revision}" if revision else file
        raise kind(text.format(repo=repo, file=file, revision=revision, login=LOGIN, error=first_line)) from error
