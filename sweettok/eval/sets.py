"""Sets of features, and the distance of two of them with its noise floor and bootstrap interval.

Letters: N clips, D feature width.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from sweettok.data.lists import some
from sweettok.eval.frechet import FeatureStats, frechet_distance
from sweettok.eval.protocol import Protocol
from sweettok.store import write_aside

FEW_CLIPS = 2048  # below this FVD is mostly bias
BOOTSTRAP = "95% percentile bootstrap interval"
LEAST_REPEATS = 20  # fewer redrawn sets have no percentiles worth the name


class FeatureSet:
    """The features of one side, as statistics of two random halves.

    A clip's half depends on the seed and its number alone; of each pair of neighbours one falls into either half. With
    `keep` the features themselves are kept too, which a bootstrap needs. Sets of parts merge into the whole.
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
        halves = torch.tensor([self.half(index) for index in indices])
        for half, stats in enumerate(self.halves):
            stats.update(features[halves == half])
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

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """Write the statistics, the features that are kept (of clips 0, 1, ...) and some JSON data to a file."""
        tensors = {"features": self.part()} if self.keep else {}
        for number, half in enumerate(self.halves):
            tensors |= {f"mean{number}": half.mean, f"scatter{number}": half.scatter}
        about = {"seed": self.seed, "counts": [half.count for half in self.halves], "facts": facts}
        with write_aside(path) as aside:
            aside.write_bytes(save(tensors, metadata={"about": json.dumps(about)}))

    @classmethod
    def load(cls, path: Path) -> tuple[FeatureSet, dict[str, Any]]:
        """The set and the data that `save` has written."""
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            found = cls(about["seed"], "features" in file.keys())  # noqa: SIM118
            if found.keep:
                found._kept = list(enumerate(file.get_tensor("features")))
            found.halves = [
                FeatureStats(count, file.get_tensor(f"mean{number}"), file.get_tensor(f"scatter{number}"))
                for number, count in enumerate(about["counts"])
            ]
        return found, about["facts"]


def keeps_features(protocol: Protocol, count: int, width: int, bootstrap: int) -> bool:
    """Whether features are to be kept: to draw from them, to repeat float32 arithmetic, or as covariances would be
    singular. Otherwise memory does not grow with the number of clips."""
    return bootstrap > 0 or protocol.dtype == "float32" or count < width


def measure(real: FeatureSet, fake: FeatureSet, protocol: Protocol, bootstrap: int = 0) -> dict[str, Any]:
    """The Frechet distance of two sets of at least 2 clips each, and how far chance alone moves it.

    Args:
        bootstrap: number of redrawn sets for an interval, see `_bootstrap`; it needs kept features. 0 for none.

    Returns:
        "value"; "bootstrap", the interval or None; "noise_floor", the distance of one half of the real clips to the
        other, and beside it that of a real half to a fake one with as many clips; None with fewer than 4 clips a side.
    """
    settings = {"ddof": protocol.ddof, "dtype": protocol.dtype, "root": protocol.root}
    result = {"value": frechet_distance(real.part(), fake.part(), **settings), "noise_floor": None, "bootstrap": None}
    if min(real.count, fake.count) >= 4:
        result["noise_floor"] = {
            "real_to_real": frechet_distance(real.part(0), real.part(1), **settings),
            "real_to_fake": frechet_distance(real.part(0), fake.part(1), **settings),
            "num_clips": min(real.halves[0].count, real.halves[1].count, fake.halves[1].count),
        }
    check_bootstrap(bootstrap)
    if bootstrap:
        result["bootstrap"] = _bootstrap(real.part(), fake.part(), protocol, bootstrap, settings)
    return result


def check_bootstrap(repeats: int) -> None:
    """ValueError for a number of redrawn sets that gives no interval; 0 asks for none."""
    if repeats and repeats < LEAST_REPEATS:
        raise ValueError(f"bootstrap must be 0 (no interval), or at least {LEAST_REPEATS} redrawn sets; got {repeats}")


def _bootstrap(
    real: Tensor, fake: Tensor, protocol: Protocol, repeats: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """Percentile interval of the distances of sets that are redrawn with repetition, `repeats` times.

    Paired sets draw the same clips of both sides. Redrawn sets repeat clips, which moves their distances upwards: with
    few clips the value itself can lie below its interval.
    """
    generator = torch.Generator().manual_seed(protocol.seed)
    distances = []
    for _ in range(repeats):
        of_real = torch.randint(len(real), (len(real),), generator=generator)
        of_fake = of_real if protocol.paired else torch.randint(len(fake), (len(fake),), generator=generator)
        distances.append(frechet_distance(real[of_real], fake[of_fake], **settings))
    low, high = np.percentile(distances, (2.5, 97.5))
    return {
        "method": BOOTSTRAP,
        "repeats": repeats,
        "mean": float(np.mean(distances)),
        "std": float(np.std(distances, ddof=1)),
        "interval95": [float(low), float(high)],
    }


def cautions(num_real: int, num_fake: int, width: int) -> list[str]:
    """What a reader of a distance between so many clips must know."""
    fewest, notes = min(num_real, num_fake), []
    if fewest < FEW_CLIPS:
        notes.append(
            f"FVD of {fewest} clips is biased upwards: compare it only with values of as many clips, and use "
            f"{FEW_CLIPS} or more to report"
        )
    if fewest <= width:
        notes.append(f"{fewest} clips cannot fill {width} dimensions: the value is mostly bias")
    return notes
