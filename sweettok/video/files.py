"""Checks of arguments and outputs of the commands on long videos."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path

from torch import Tensor

OUTPUTS = (".mp4", ".mkv", ".mov")  # kinds of files that hold H.264
DEFAULT_FPS = 25.0  # for videos that do not tell theirs
Source = str | Path | Tensor


def check_least(name: str, value: object, least: int = 1) -> None:
    """ValueError unless the value is a whole number of at least `least`."""
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}")


def check_output(path: str | Path, suffixes: tuple[str, ...]) -> None:
    """ValueError, before work is lost, for a path that is a folder or of another kind; its folder is made."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: expected a file name that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
