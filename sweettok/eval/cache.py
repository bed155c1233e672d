"""Features of real clips, kept from run to run and found again by everything that they depend on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch

from sweettok.data.lists import ClipList
from sweettok.eval.checks import PixelCheck
from sweettok.eval.protocol import Protocol
from sweettok.eval.sets import FeatureSet
from sweettok.store import write_aside

# Fields of a protocol that the features of real clips do not depend on.
OTHERS = (
    "name", "split", "num_fake", "paired", "codec", "weights", "quantizer", "autocast", "ddof", "root", "dtype",
)  # fmt: skip


class RealCache:
    """Where the features of real clips and the check of their pixels are kept; nowhere with folder None.

    What is kept is found by the protocol's fields, the names and sizes of the files, and whether features are needed
    beside their statistics.
    """

    def __init__(self, folder: str | Path | None, protocol: Protocol, clips: ClipList, keep: bool):
        self.stem = None
        if folder is not None:
            fields = {name: value for name, value in protocol.to_dict().items() if name not in OTHERS}
            sizes = [path.stat().st_size for path in clips.paths]
            key = json.dumps([fields, sizes, keep], sort_keys=True)
            self.stem = Path(folder) / hashlib.sha256(key.encode()).hexdigest()

    def find(self) -> tuple[FeatureSet, PixelCheck] | None:
        """What is kept, or None."""
        if self.stem is None or not all(path.is_file() for path in self._files()):
            return None
        features, check = self._files()
        facts = json.loads(check.read_text(encoding="utf-8"))
        return FeatureSet.load(features), PixelCheck(**{**facts, "total": torch.tensor(facts["total"]).double()})

    def keep(self, features: FeatureSet, check: PixelCheck) -> None:
        """Keep these for the next run."""
        if self.stem is not None:
            to_features, to_check = self._files()
            features.save(to_features)
            with write_aside(to_check) as aside:
                aside.write_text(json.dumps({**asdict(check), "total": check.total.tolist()}), encoding="utf-8")

    def _files(self) -> tuple[Path, Path]:
        return self.stem.with_suffix(".safetensors"), self.stem.with_suffix(".json")
