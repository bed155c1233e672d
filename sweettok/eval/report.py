"""Reports: what was measured, on what, by which software; the same run gives the same bytes."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState

import sweettok
from sweettok.eval.features import I3D_FILE, FeatureExtractor
from sweettok.eval.protocol import Protocol
from sweettok.pretrained import CONFIG, WEIGHTS
from sweettok.store import sha256, write_aside

FORMAT = 2
PACKAGES = ("torch", "numpy", "scipy", "av")


def versions() -> dict[str, str]:
    """Versions of the software that a number depends on."""
    return {
        "sweettok": sweettok.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def checkpoint_hashes(folder: str | Path) -> dict[str, str]:
    """SHA-256 of the files of a model."""
    return {name: sha256(Path(folder) / name) for name in (CONFIG, WEIGHTS)}


def refusal(num_clips: int, num_frames: int, extractor: FeatureExtractor | None) -> str | None:
    """Why no Frechet distance can be measured, or None when it can."""
    if extractor is None:
        return f"no I3D weights: give --i3d PATH, the file {I3D_FILE}"
    if num_frames < extractor.min_frames:
        return f"clips have {num_frames} frames, the detector needs at least {extractor.min_frames}"
    if num_clips < 2:
        return f"a Frechet distance needs at least 2 clips a side, there is {num_clips}"
    return None


def report(
    kind: str,
    protocol: Protocol,
    results: dict[str, Any],
    state: PartialState,
    refused: str | None,
    settings: dict[str, Any],
    **parts: Any,
) -> dict[str, Any]:
    """A report of a kind, "rfvd" or "gfvd", as plain JSON data. refused: why that number is missing, if it is."""
    return {
        "format": FORMAT,
        "kind": kind,
        "protocol": protocol.to_dict(),
        "protocol_hash": protocol.hash,
        "results": results,
        f"{kind}_refused": refused,
        "settings": {**settings, "device": state.device.type},
        "versions": versions(),
        **parts,
    }  # fmt: skip


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` with sorted keys, aside and renamed. ValueError for numbers that JSON cannot hold."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
    with write_aside(Path(path)) as aside:
        aside.write_text(text, encoding="utf-8")
