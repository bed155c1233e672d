"""Folders of weights in the library's own format: config.json and model.safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sweettok import config as configs

FORMAT = 1


class Pretrained:
    """Gives a model `save_pretrained` and `from_pretrained`.

    A class sets `config_class`, keeps its configuration as `self.config`, and may carry plain data beside its tensors
    by overriding `assets` and `build`.
    """

    config_class: type

    def assets(self) -> dict[str, Any]:
        """JSON data that belongs to the weights."""
        return {}

    @classmethod
    def build(cls, config: Any, assets: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
        """The model that `tensors` fit, before they are loaded."""
        return cls(config)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `folder`/config.json and `folder`/model.safetensors; each file appears whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        about = {
            "model": type(self).__name__,
            "format": FORMAT,
            "config": configs.to_dict(self.config),
            "assets": self.assets(),
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        # save_file would make files that only their owner can read
        (folder / "model.safetensors.part").write_bytes(save(tensors))
        os.replace(folder / "model.safetensors.part", folder / "model.safetensors")
        (folder / "config.json.part").write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
        os.replace(folder / "config.json.part", folder / "config.json")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Any:
        """Load a folder that `save_pretrained` wrote, onto the CPU, in evaluation mode.

        Raises FileNotFoundError when a file is missing, ValueError when the folder holds another model or format.
        """
        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} holds no {name}: give a folder written by save_pretrained")
        try:
            about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "model.safetensors")
        except (ValueError, SafetensorError) as error:
            raise ValueError(f"{folder} holds a damaged file: {error}") from error
        named, version = (about.get("model"), about.get("format")) if isinstance(about, dict) else (None, None)
        if named != cls.__name__ or version != FORMAT:
            raise ValueError(
                f"{folder} holds {named!r} in format {version!r}, expected {cls.__name__!r} in format {FORMAT}"
            )
        try:
            model = cls.build(configs.build(cls.config_class, about["config"]), about["assets"], tensors)
            model.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{folder}: config.json and model.safetensors do not fit together: {error}") from error
        return model.eval()
