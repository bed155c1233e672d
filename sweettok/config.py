"""Typed configurations: from YAML and overrides to frozen dataclasses and back, and checks that they share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException


def find_config(path: str | Path) -> Path:
    """The file at `path`, or else the one of this name in the package, such as configs/stage1/ucf101.yaml."""
    path, packaged = Path(path), Path(__file__).parent / path
    return packaged if path.parts[:1] == ("configs",) and packaged.is_file() and not path.exists() else path


def build(cls: type, *sources: Any) -> Any:
    """Merge mappings or OmegaConf nodes over the defaults of dataclass `cls` and return a frozen instance of it.

    Raises ValueError for unknown keys, wrong types, missing values and inconsistent sizes.
    """
    try:
        node = OmegaConf.merge(OmegaConf.structured(cls), *sources)
        missing = sorted(OmegaConf.missing_keys(node))
        if missing:
            raise ValueError(f"no value for {', '.join(missing)}: set it in the YAML file or as {missing[0]}=...")
        return OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        key = f" (at {error.full_key!r})" if error.full_key else ""
        raise ValueError(f"configuration{key}: {str(error).splitlines()[0]}") from error


def to_dict(config: Any) -> dict:
    """Plain nested dict of a configuration, for JSON and YAML."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return plain(dataclasses.asdict(config))


def choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def positive(config: Any, section: str, *names: str) -> None:
    """Raise ValueError unless the named fields of `config` that have a value are above 0."""
    for name in names:
        value = getattr(config, name)
        if value not in (None, MISSING) and value <= 0:
            raise ValueError(f"{section}.{name} must be above 0; got {value}")


def pattern(name: str, value: str, letters: str) -> None:
    """Raise ValueError unless `value` is a non-empty string over `letters`."""
    if not value or set(value) - set(letters):
        raise ValueError(f"{name} must be a non-empty string over {list(letters)} (one letter a layer); got {value!r}")
