"""Reports: what was measured, on what, by which software; the same run gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sweettok
from sweettok.data.writer import write_aside

PACKAGES = ("torch", "numpy", "scipy", "av")
_BLOCK = 1 << 20


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of the software that a number depends on."""
    return {
        "sweettok": sweettok.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` with sorted keys, aside and renamed. ValueError for numbers that JSON cannot hold."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
    with write_aside(Path(path)) as aside:
        aside.write_text(text, encoding="utf-8")
