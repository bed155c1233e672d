"""Cache of what an evaluation computes of real clips."""

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
from sweettok.data.shards import digest
from sweettok.eval.protocol import Protocol
from sweettok.store import write_aside

# Fields of a protocol that do not affect what is cached.
UNRELATED = ("name", "split", "num_fake", "paired", "codec", "autocast", "ddof", "root", "dtype")
PACKAGES = ("av", "decord", "torch", "torchvision")  # decode, resize and compute features
FORMAT = 3  # increase when the file, the way in which frames are read or the score of a baseline changes


class RealCache:
    """Files in `folder` with features, and other `columns`, of real clips; with folder None nothing is cached.

    The file name is a hash of the protocol (with the hash of the detector's weights), the contents of the video files
    and the versions of PACKAGES.
    """

    def __init__(
        self, folder: str | Path | None, protocol: Protocol, clips: ClipList, columns: Sequence[str] = ("real_pixels",)
    ):
        self.folder, self.protocol, self.clips, self.columns = folder, protocol, clips, columns
        self.path: Path | None = None

    def find(self) -> list[dict[str, Any]] | None:
        """The cached entry of each clip, or None. Hashes the video files, which is far cheaper than decoding them."""
        if self.folder is None:
            return None
        self.path = Path(self.folder) / f"{self._key()}.safetensors"
        try:
            with safe_open(self.path, framework="numpy") as file:
                rows = json.loads(file.metadata()["columns"])
                features = file.get_tensor("features")
        except (FileNotFoundError, SafetensorError):  # a damaged file will be replaced
            return None
        if any(name not in row for row in rows for name in self.columns):  # kept by another evaluation
            return None
        return [{**row, "real_features": vector} for row, vector in zip(rows, features, strict=True)]

    def keep(self, clips: Sequence[dict[str, Any]]) -> None:
        """Write the file that `find` looked for."""
        if self.path is not None:
            empty = np.zeros(0)  # without a detector
            features = np.stack([clip.get("real_features", empty) for clip in clips])
            rows = json.dumps([{name: clip[name] for name in self.columns} for clip in clips])
            with write_aside(self.path) as aside:
                save_file({"features": features}, aside, metadata={"columns": rows})

    def _key(self) -> str:
        fields = {name: value for name, value in self.protocol.to_dict().items() if name not in UNRELATED}
        contents = [digest(path) for path in self.clips.paths]
        versions = {name: version(name) if find_spec(name) else None for name in PACKAGES}
        return hashlib.sha256(json.dumps([FORMAT, fields, contents, versions], sort_keys=True).encode()).hexdigest()
