"""Cache of the features of real clips."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sweettok.data.lists import ClipList
from sweettok.eval.protocol import Protocol
from sweettok.store import sha256, write_aside

# Fields of a protocol that do not affect the features of real clips.
UNRELATED = ("name", "split", "num_fake", "paired", "codec", "autocast", "ddof", "root", "dtype")
PACKAGES = ("av", "decord", "torch", "torchvision")  # decode, resize and compute features
FORMAT = 2  # increase when the file or the way in which frames are read changes


class RealCache:
    """Files in `folder` with the features and pixel statistics of real clips; with folder None nothing is cached.

    The file name is a hash of the protocol (with the hash of the detector's weights), the contents of the video files
    and the versions of PACKAGES.
    """

    def __init__(self, folder: str | Path | None, protocol: Protocol, clips: ClipList):
        self.folder, self.protocol, self.clips = folder, protocol, clips
        self.path: Path | None = None

    def find(self) -> list[dict[str, Any]] | None:
        """The cached entry of each clip, or None. Hashes the video files, which is far cheaper than decoding them."""
        if self.folder is None:
            return None
        self.path = Path(self.folder) / f"{self._key()}.safetensors"
        try:
            with safe_open(self.path, framework="numpy") as file:
                pixels = json.loads(file.metadata()["pixels"])
                features = file.get_tensor("features")
        except (FileNotFoundError, SafetensorError):  # a damaged file will be replaced
            return None
        return [{"real_features": row, "real_pixels": facts} for row, facts in zip(features, pixels, strict=True)]

    def keep(self, clips: Sequence[dict[str, Any]]) -> None:
        """Write the file that `find` looked for."""
        if self.path is not None:
            features = np.stack([clip["real_features"] for clip in clips])
            pixels = json.dumps([clip["real_pixels"] for clip in clips])
            with write_aside(self.path) as aside:
                save_file({"features": features}, aside, metadata={"pixels": pixels})

    def _key(self) -> str:
        fields = {name: value for name, value in self.protocol.to_dict().items() if name not in UNRELATED}
        contents = [sha256(path) for path in self.clips.paths]
        versions = {name: version(name) if find_spec(name) else None for name in PACKAGES}
        return hashlib.sha256(json.dumps([FORMAT, fields, contents, versions], sort_keys=True).encode()).hexdigest()
