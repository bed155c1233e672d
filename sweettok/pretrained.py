"""Folders of weights in the library's own format: config.json, model.safetensors and a model card; on the hub too.

config.json
  model, format      the class and FORMAT
  sweettok           version of the library that wrote it
  weights_sha256     of model.safetensors: files of two different saves do not pass for a model
  training           facts of the run that made these weights, or null
  config, assets     settings, and plain data such as the word lists
The word graphs of a tokenizer, its prior, are among the tensors.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

import sweettok
from sweettok import card, hub
from sweettok import config as configs
from sweettok.hub import CONFIG, WEIGHTS
from sweettok.store import sha256, write_aside

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT = 2
CARD = "README.md"
Content = tuple[dict[str, Any], dict[str, Tensor]]


def without_origin(about: dict[str, Any], tensors: dict[str, Tensor]) -> Content:
    """Format 1 did not say where weights came from."""
    return {**about, "sweettok": None, "weights_sha256": None, "training": None}, tensors


# What brings the content of a folder from a format to the next one.
MIGRATIONS: dict[int, Callable[[dict[str, Any], dict[str, Tensor]], Content]] = {1: without_origin}


class Pretrained(nn.Module):
    """A model with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    A class sets `config_class`, keeps its configuration as `self.config`, and may carry plain data beside its tensors
    by overriding `assets` and `build`. What cards say of it is in `sweettok.card`.
    """

    config_class: type
    _trained: tuple[str, dict[str, Any]] | None = None  # the weights that were loaded, and the facts of their training

    def assets(self) -> dict[str, Any]:
        """JSON data that belongs to the weights."""
        return {}

    @classmethod
    def build(cls, config: Any, assets: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """The model that `tensors` fit, before they are loaded."""
        return cls(config)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        report: str | Path | Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        license: str | None = None,
    ) -> None:
        """Write `folder`/config.json, model.safetensors and README.md; each file appears whole or not at all.

        Args:
            report: of `python -m sweettok.eval` on these weights, a file or its content, for the card.
            training: plain facts of the run that made the weights, for the card. They stay with weights that are
                loaded and saved again unchanged.
            license: of the weights, for the card; none is claimed for them by itself.

        A README.md that was written or changed by hand stays as it is; ValueError where it could then not show the
        report. ValueError also for a report of other weights.
        """
        self._save(Path(folder), "path/to/this/folder", report, training, license)

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
        """Upload what `save_pretrained` writes to the hub, in one commit; returns the commit's address.

        Args:
            repo_id: "user/name"; made where it is not there.
            private: of a new repository; None leaves it to the account's default.
            token: instead of that of the login.
            revision: a branch, made where it is not there; None is the main branch.
            report, training, license: as in `save_pretrained`, also for a card that was edited on the hub.

        Raises ValueError and OSError saying what is wrong with the report, the name, the login or the connection.
        """
        repository = hub.Repository(repo_id, revision, token=token)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            self._save(folder, repo_id, report, training, license)
            repository.create(private)
            if repository.has(CARD):
                page = repository.fetch(CARD)
                if stays(page, report):
                    (folder / CARD).write_bytes(page.read_bytes())
            told = commit_message or f"{type(self).__name__} of sweettok {sweettok.__version__}"
            return repository.upload(folder, told)

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
        """Load what `save_pretrained` or `push_to_hub` wrote, onto the CPU, in evaluation mode.

        Args:
            source: a folder, or else "user/name" of a repository of the hub. Files are fetched into huggingface_hub's
                cache, and taken from there when there is no connection.
            revision: branch, tag or commit on the hub.
            cache_dir: instead of the usual cache.
            token: instead of that of the login.
            local_files_only: do not ask the hub.

        Raises FileNotFoundError for what is not there, OSError for what cannot be had, ValueError when the source holds
        another model, a newer format, or files that are damaged or of different saves.
        """
        place = hub.find(source, revision, cache_dir, token, local_files_only)
        path = place.fetch(CONFIG)
        about = read_about(path, source, cls.__name__)  # before the weights are fetched
        path = place.pinned(path).fetch(WEIGHTS)
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{source} holds a damaged file: {WEIGHTS}: {error}") from error
        try:
            for version in range(about["format"], FORMAT):
                about, tensors = MIGRATIONS[version](about, tensors)
            if about["weights_sha256"] not in (None, sha256(path)):
                raise ValueError("they are of different saves, or one of them is damaged")
            model = cls.build(configs.build(cls.config_class, about["config"]), about["assets"], tensors)
            model.load_state_dict(tensors)
            model._trained = about["weights_sha256"], about["training"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{source}: {CONFIG} and {WEIGHTS} do not fit together: {error}") from error
        return model.eval()

    def _save(
        self,
        folder: Path,
        name: str,
        report: str | Path | Mapping[str, Any] | None,
        training: Mapping[str, Any] | None,
        licence: str | None,
    ) -> None:
        """As `save_pretrained`; `name` is what the card says to load."""
        keep = stays(folder / CARD, report)
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()})
        weights = hashlib.sha256(content).hexdigest()
        if training is None and self._trained is not None and self._trained[0] == weights:
            training = self._trained[1]
        about = {
            "model": type(self).__name__,
            "format": FORMAT,
            "sweettok": sweettok.__version__,
            "weights_sha256": weights,
            "training": training,
            "config": configs.to_dict(self.config),
            "assets": self.assets(),
        }
        try:
            text = json.dumps(about, indent=1, ensure_ascii=False)
        except TypeError as error:
            raise ValueError(f"training must be plain text, numbers and lists: {error}") from error
        measured = [] if report is None else card.read_report(report, self, weights)
        page = card.write_card(self, name, weights, training, measured, licence)
        # Of a save that is broken off, the weights fail the old config.json's hash.
        for file, data in ((WEIGHTS, content), (CONFIG, text.encode()), *(() if keep else ((CARD, page.encode()),))):
            with write_aside(folder / file) as aside:
                aside.write_bytes(data)


def stays(page: Path, report: Any) -> bool:
    """Whether a card stays because it was edited; ValueError where it then could not show a report."""
    edited = card.is_edited(page)
    if edited and report is not None:
        raise ValueError(f"{page.name} was edited by hand and stays, so it cannot show the report: delete that page, "
                         "or leave the report out")  # fmt: skip
    return edited


def read_about(path: Path, source: str | Path, *models: str) -> dict[str, Any]:
    """The content of the config.json of one of `models`; ValueError for others and for a format that cannot be read."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{source} holds a damaged file: {path.name}: {error}") from error
    named, version = (about.get("model"), about.get("format")) if isinstance(about, dict) else (None, None)
    if named not in models:
        expected = " or ".join(map(repr, models))
        raise ValueError(f"{source} holds {named!r}, expected {expected}: give a folder that its save_pretrained wrote")
    if type(version) is int and version > FORMAT:
        raise ValueError(f"{source} is in format {version}, of sweettok {about.get('sweettok')}; this is "
                         f"{sweettok.__version__}, which reads up to format {FORMAT}: update sweettok")  # fmt: skip
    if type(version) is not int or version < min(MIGRATIONS):
        raise ValueError(f"{source} is in format {version!r}, expected one of {min(MIGRATIONS)} to {FORMAT}")
    return about
