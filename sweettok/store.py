"""Files: written whole or not at all, and known by their hash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_BLOCK = 1 << 20


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """A name beside `path`, with its suffix, that becomes `path` when the block ends well and vanishes when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def check_apart(sources: Iterable[str | Path], outputs: Iterable[str | Path]) -> None:
    """ValueError where an output would take the place of a source, by whatever name."""
    there = {Path(path).resolve() for path in sources}
    for path in outputs:
        if Path(path).resolve() in there:
            raise ValueError(f"{path} is read, and would be overwritten: choose another place for what is written")


def sha256(*paths: str | Path) -> str:
    """SHA-256 of the bytes of a file, or of several one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
