"""Checks that the configuration classes share."""

from __future__ import annotations

from typing import Any

from omegaconf import MISSING


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
