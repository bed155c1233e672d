"""From a YAML file and overrides to the typed configuration of a run, and back to plain data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sweettok.config.runs import RUNS, RunConfig


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


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a run's YAML file, apply `key.path=value` overrides, and return the typed configuration of its stage."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file at {path}")
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"override {override!r} is not of the form key.path=value")
    try:
        node = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        stage = node.get("stage")
    except (OSError, TypeError, AttributeError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} is no YAML file of settings: {str(error).splitlines()[0]}") from error
    if stage not in RUNS:
        raise ValueError(f"{path}: `stage` must be one of {', '.join(RUNS)}; got {stage!r}")
    try:
        return build(RUNS[stage], node)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def to_dict(config: Any) -> dict:
    """Plain nested dict of a configuration, for JSON and YAML."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return plain(dataclasses.asdict(config))
