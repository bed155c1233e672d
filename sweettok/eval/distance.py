"""The Frechet distance of two sets of clips, with its noise floor and bootstrap interval.

Letters: N clips, D feature width.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sweettok.eval.features import I3D_FILE, FeatureExtractor
from sweettok.eval.frechet import frechet_distance
from sweettok.eval.protocol import Protocol

FEW_CLIPS = 2048  # below this FVD is mostly bias
INTERVAL = "95% percentile bootstrap interval"
LEAST_REPEATS = 20  # of fewer redrawn sets there are no percentiles


def measure(real: Tensor, fake: Tensor, protocol: Protocol, bootstrap: int = 0) -> dict[str, Any]:
    """The Frechet distance of two sets of features (N, D), of at least 2 clips each, and how far chance alone moves it.

    Args:
        bootstrap: number of redrawn sets for an interval, see `redraw`. 0 for none.

    Returns:
        "value"; "bootstrap", the interval or None; "noise_floor", the distance of one half of the real clips to the
        other, and beside it that of a real half to a fake one with as many clips; None with fewer than 4 clips a side.
    """
    check_bootstrap(bootstrap)
    settings = {"ddof": protocol.ddof, "dtype": protocol.dtype, "root": protocol.root}
    result = {"value": frechet_distance(real, fake, **settings), "noise_floor": None, "bootstrap": None}
    if min(len(real), len(fake)) >= 4:
        first, second = (half(len(real), protocol.seed), ~half(len(fake), protocol.seed))
        result["noise_floor"] = {
            "real_to_real": frechet_distance(real[first], real[~first], **settings),
            "real_to_fake": frechet_distance(real[first], fake[second], **settings),
            "num_clips": min(first.sum().item(), (~first).sum().item(), second.sum().item()),
        }
    if bootstrap:
        result["bootstrap"] = interval(redraw(real, fake, protocol, bootstrap))
    return result


def stack_features(clips: Sequence[dict[str, Any]], side: str) -> Tensor:
    """The features of the "real" or the "fake" clips, (N, D) float64."""
    return torch.from_numpy(np.stack([clip[f"{side}_features"] for clip in clips]))


def half(count: int, seed: int) -> Tensor:
    """Which of so many clips belong to the first half, (N,) bool: one of each pair of neighbours, drawn by the seed."""
    return torch.tensor([(i + random.Random(f"{seed} {i // 2}").getrandbits(1)) % 2 == 0 for i in range(count)])


def redraw(real: Tensor, fake: Tensor, protocol: Protocol, repeats: int) -> list[float]:
    """Distances of sets whose clips are drawn with repetition, the same clips of both sides where they are paired.

    Redrawn sets repeat clips, which moves their distances upwards: with few clips the distance of the sets themselves
    can lie below the interval.
    """
    generator = torch.Generator().manual_seed(protocol.seed)
    distances = []
    for _ in range(repeats):
        of_real = torch.randint(len(real), (len(real),), generator=generator)
        of_fake = of_real if protocol.paired else torch.randint(len(fake), (len(fake),), generator=generator)
        sides = real[of_real], fake[of_fake]
        distances.append(frechet_distance(*sides, ddof=protocol.ddof, dtype=protocol.dtype, root=protocol.root))
    return distances


def interval(values: list[float]) -> dict[str, Any]:
    """Percentile interval of redrawn values, and their mean and deviation."""
    low, high = np.percentile(values, (2.5, 97.5)).tolist()
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    return {"method": INTERVAL, "repeats": len(values), "mean": mean, "std": std, "interval95": [low, high]}


def check_bootstrap(repeats: int) -> None:
    """ValueError for a number of redrawn sets that gives no interval; 0 asks for none."""
    if repeats and repeats < LEAST_REPEATS:
        raise ValueError(f"bootstrap must be 0 (no interval), or at least {LEAST_REPEATS} redrawn sets; got {repeats}")


def refusal(num_clips: int, num_frames: int, extractor: FeatureExtractor | None) -> str | None:
    """Why no Frechet distance can be measured, or None when it can."""
    if extractor is None:
        return f"no I3D weights: give --i3d PATH, the file {I3D_FILE}"
    if num_frames < extractor.min_frames:
        return f"clips have {num_frames} frames, the detector needs at least {extractor.min_frames}"
    if num_clips < 2:
        return f"a Frechet distance needs at least 2 clips of each side, there is {num_clips}"
    return None


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
