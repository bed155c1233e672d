"""Sets of features and what is told about two of them: distance, noise floor, bootstrap interval.

Letters: N clips, D feature width.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from sweettok.data.lists import some
from sweettok.eval.frechet import FeatureStats, frechet_distance
from sweettok.eval.protocol import Protocol
from sweettok.store import write_aside

FEW_CLIPS = 2048  # below this FVD is mostly bias


class FeatureSet:
    """The features of one side, as statistics of two halves into which clips fall by lot.

    The lot depends on the seed and the clip's number alone, one of each pair of neighbours falling into either half.
    With `keep` the features themselves are kept too, which a bootstrap needs. Sets of parts merge into the whole.
    """

    def __init__(self, seed: int = 0, keep: bool = False):
        self.seed, self.keep = seed, keep
        self.halves = [FeatureStats(), FeatureStats()]
        self._kept: list[tuple[int, Tensor]] = []

    def half(self, index: int) -> int:
        """Which half clip number `index` belongs to."""
        return (index + random.Random(f"{self.seed} {index // 2}").getrandbits(1)) % 2

    def update(self, features: Tensor, indices: Sequence[int], keys: Sequence[str]) -> None:
        """Add features (N, D) of the clips of these numbers and names. ValueError naming clips with NaN or infinity."""
        features = features.detach().to("cpu", torch.float64)
        broken = [key for key, row in zip(keys, features, strict=True) if not row.isfinite().all()]
        if broken:
            raise ValueError(f"features are not finite of {len(broken)} clips{some(broken)}")
        lots = torch.tensor([self.half(index) for index in indices])
        for lot, stats in enumerate(self.halves):
            stats.update(features[lots == lot])
        if self.keep:
            self._kept += zip(indices, features, strict=True)

    def merge(self, other: FeatureSet) -> FeatureSet:
        """The set of both together; neither is changed."""
        both = FeatureSet(self.seed, self.keep)
        both.halves = [mine.merge(theirs) for mine, theirs in zip(self.halves, other.halves, strict=True)]
        both._kept = self._kept + other._kept
        return both

    @property
    def count(self) -> int:
        return sum(half.count for half in self.halves)

    def part(self, half: int | None = None) -> Tensor | FeatureStats:
        """A half, or all: features (N, D) in the order of the clips where they are kept, else their statistics."""
        if not self.keep:
            return self.halves[0].merge(self.halves[1]) if half is None else self.halves[half]
        rows = [row for index, row in sorted(self._kept, key=lambda kept: kept[0]) if half in (None, self.half(index))]
        return torch.stack(rows)

    def save(self, path: Path) -> None:
        """Write the statistics, and the features that are kept of clips 0, 1, ..., to a file."""
        tensors = {"features": self.part()} if self.keep else {}
        for number, half in enumerate(self.halves):
            tensors |= {f"mean{number}": half.mean, f"scatter{number}": half.scatter}
        counts = {f"count{number}": str(half.count) for number, half in enumerate(self.halves)}
        with write_aside(path) as aside:
            aside.write_bytes(save(tensors, metadata={"seed": str(self.seed), **counts}))

    @classmethod
    def load(cls, path: Path) -> FeatureSet:
        """What `save` has written."""
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
            found = cls(int(facts["seed"]), "features" in file.keys())  # noqa: SIM118
            if found.keep:
                found._kept = list(enumerate(file.get_tensor("features")))
            found.halves = [
                FeatureStats(int(facts[f"count{n}"]), file.get_tensor(f"mean{n}"), file.get_tensor(f"scatter{n}"))
                for n in range(2)
            ]
        return found


def keeps_features(protocol: Protocol, count: int, width: int, bootstrap: int) -> bool:
    """Whether features are to be kept: to draw from them, to repeat float32 arithmetic, or as covariances would be
    singular. Otherwise memory does not grow with the number of clips."""
    return bootstrap > 0 or protocol.dtype == "float32" or count < width


def measure(real: FeatureSet, fake: FeatureSet, protocol: Protocol, bootstrap: int = 0) -> dict[str, Any]:
    """The Frechet distance of two sets of at least 2 clips each, and how far chance alone moves it.

    noise_floor: of one half of the real clips to the other, and beside it the distance of a real half to a fake one,
    which has the same number of clips; None with fewer than 4 clips a side. bootstrap: from so many redrawn sets, see
    `_bootstrap`; it needs kept features.
    """
    settings = {"ddof": protocol.ddof, "dtype": protocol.dtype, "root": protocol.root}
    result = {"value": frechet_distance(real.part(), fake.part(), **settings), "noise_floor": None, "bootstrap": None}
    if min(real.count, fake.count) >= 4:
        result["noise_floor"] = {
            "real_to_real": frechet_distance(real.part(0), real.part(1), **settings),
            "real_to_fake": frechet_distance(real.part(0), fake.part(1), **settings),
            "num_clips": min(real.halves[0].count, real.halves[1].count, fake.halves[1].count),
        }
    if bootstrap:
        result["bootstrap"] = _bootstrap(real.part(), fake.part(), result["value"], protocol, bootstrap, settings)
    return result


def _bootstrap(
    real: Tensor, fake: Tensor, value: float, protocol: Protocol, repeats: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """Interval of the distance by drawing clips with repetition, `repeats` times.

    Paired sets draw the same clips of both sides. Redrawn sets repeat clips, so that their distances are biased further
    upwards than the value: only their spread is used, as value +- 1.96 deviations.
    """
    generator = torch.Generator().manual_seed(protocol.seed)
    distances = []
    for _ in range(repeats):
        of_real = torch.randint(len(real), (len(real),), generator=generator)
        of_fake = of_real if protocol.paired else torch.randint(len(fake), (len(fake),), generator=generator)
        distances.append(frechet_distance(real[of_real], fake[of_fake], **settings))
    mean = math.fsum(distances) / repeats
    deviation = math.sqrt(math.fsum((distance - mean) ** 2 for distance in distances) / max(repeats - 1, 1))
    return {"repeats": repeats, "std": deviation, "interval95": [value - 1.96 * deviation, value + 1.96 * deviation]}


def cautions(num_real: int, num_fake: int, width: int) -> list[str]:
    """What a reader of a distance between so many clips must know."""
    fewest, notes = min(num_real, num_fake), []
    if fewest < FEW_CLIPS:
        notes.append(f"FVD of {fewest} clips is biased upwards: compare it only with values of as many clips, "
                     f"and use {FEW_CLIPS} or more to report")  # fmt: skip
    if fewest <= width:
        notes.append(f"{fewest} clips cannot fill {width} dimensions: the value is mostly bias")
    return notes
