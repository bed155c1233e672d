"""Configurations: YAML and overrides to frozen dataclasses and back, and checks for their fields."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

LARGEST = 2**31 - 1  # of whole numbers in settings and options


def find_config(path: str | Path) -> Path:
    """The file at `path`, or a configuration of the package, such as configs/stage1/ucf101.yaml."""
    path, packaged = Path(path), Path(__file__).parent / path
    found = packaged if path.parts[:1] == ("configs",) and not path.exists() else path
    if not found.is_file():
        raise FileNotFoundError(f"no configuration file at {path}")
    return found


def read_settings(path: Path, including: tuple[Path, ...] = ()) -> DictConfig:
    """The settings of a YAML file, merged over those of its `base` files.

    Args:
        path: the file. Its `base` is one path or a list of paths, relative to its folder; later ones override earlier.
        including: files that include this one, to detect cycles.
    """
    path = path.resolve()
    if path in including:
        names = " -> ".join(file.name for file in (*including, path))
        raise ValueError(f"{path}: `base` leads back to the file itself: {names}")
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file at {path}, which {including[-1]} names as its base")
    try:
        node = OmegaConf.load(path)
        if not isinstance(node, DictConfig):
            raise TypeError("expected lines of the form key: value")
        bases = node.pop("base", ())
    except (OSError, TypeError, AttributeError, UnicodeError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} is not a YAML file of settings: {str(error).splitlines()[0]}") from error
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, (tuple, list, ListConfig)) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: `base` must be a path or a list of paths; got {bases}")
    return OmegaConf.merge(*(read_settings(path.parent / base, (*including, path)) for base in bases), node)


def parse_overrides(overrides: Sequence[str]) -> DictConfig:
    """Settings given as `key.path=value`."""
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"override {override!r} is not of the form key.path=value")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"one of {' '.join(overrides)} is not of the form key.path=value: {error}") from error


def build(cls: type, *sources: Any) -> Any:
    """An instance of dataclass `cls` from mappings or OmegaConf nodes, merged over its defaults.

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


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {dotted name: value}."""
    flat = {}
    for name, value in settings.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def field_comments(cls: type) -> dict[str, str]:
    """{field: description} of a dataclass and its bases: the comment after a field, else the comment lines above it."""
    found = {}
    for part in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        above: list[str] = []
        for line in inspect.getsource(part).splitlines():
            comment = re.match(r"    # (.*)", line)
            field = re.match(r"    (\w+): [^#]*(?:# (.*))?$", line)
            if field:
                found[field[1]] = field[2] or " ".join(above) or found.get(field[1], "")
            above = [*above, comment[1]] if comment else []
    return {field.name: found.get(field.name, "") for field in dataclasses.fields(cls)}


def choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def positive(config: Any, section: str, *names: str) -> None:
    """Raise ValueError unless the named fields of `config` are above 0, missing or None."""
    for name in names:
        value = getattr(config, name)
        if value not in (None, MISSING) and not value > 0:  # not NaN either
            raise ValueError(f"{section}.{name} must be above 0; got {value}")


def whole(config: Any, section: str, least: int, *names: str, most: int = LARGEST) -> None:
    """Raise ValueError unless the named fields of `config` are from `least` to `most`, or None."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not least <= value <= most:
            raise ValueError(f"{section}.{name} must be a whole number from {least} to {most}; got {value}")


def pattern(name: str, value: str, letters: str) -> None:
    """Raise ValueError unless `value` is a non-empty string over `letters`."""
    if not value or set(value) - set(letters):
        raise ValueError(f"{name} must be a non-empty string over {list(letters)} (one letter a layer); got {value!r}")
