"""Features of real clips, kept from run to run and found again by everything that they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sweettok.data.lists import ClipList
from sweettok.eval.protocol import Protocol
from sweettok.store import sha256, write_aside

# Fields of a protocol that the features of real clips do not depend on.
OTHERS = ("name", "split", "num_fake", "paired", "codec", "autocast", "ddof", "root", "dtype")
PACKAGES = ("av", "decord", "torch", "torchvision")  # decode, resize and compute features
FORMAT = 2  # of what is kept, and of how this library reads frames


class RealCache:
    """Where the features of real clips and the facts of their pixels are kept; nowhere with folder None.

    The key is made of the protocol's fields (the hash of the detector's file among them), the contents of the video
    files and the versions of the libraries.
    """

    def __init__(self, folder: str | Path | None, protocol: Protocol, clips: ClipList):
        self.folder, self.protocol, self.clips = folder, protocol, clips
        self.path: Path | None = None

    def find(self) -> list[dict[str, Any]] | None:
        """What is kept of each clip, or None. Reads the files of the clips to hash them, far cheaper than decoding."""
        if self.folder is None:
            return None
        self.path = Path(self.folder) / f"{self._key()}.safetensors"
        try:
            with safe_open(self.path, framework="numpy") as file:
                pixels = json.loads(file.metadata()["pixels"])
                features = file.get_tensor("features")
        except (FileNotFoundError, SafetensorError):  # a damaged file is replaced
            return None
        return [{"real_features": row, "real_pixels": facts} for row, facts in zip(features, pixels, strict=True)]

    def keep(self, clips: Sequence[dict[str, Any]]) -> None:
        """Keep these for the next run, where `find` looked."""
        if self.path is not None:
            features = np.stack([clip["real_features"] for clip in clips])
            pixels = json.dumps([clip["real_pixels"] for clip in clips])
            with write_aside(self.path) as aside:
                save_file({"features": features}, aside, metadata={"pixels": pixels})

    def _key(self) -> str:
        fields = {name: value for name, value in self.protocol.to_dict().items() if name not in OTHERS}
        contents = [sha256(path) for path in self.clips.paths]
        key = json.dumps([FORMAT, fields, contents, _versions()], sort_keys=True)
        return hashlib.sha256(key.encode()).hexdigest()


def _versions() -> dict[str, str | None]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
