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

from sweettok.eval.features import FeatureExtractor
from sweettok.eval.frechet import frechet_distance
from sweettok.eval.protocol import Protocol

FEW_CLIPS = 2048  # with fewer, the distance is biased
LEAST_REPEATS = 20  # fewer do not determine the 2.5% and 97.5% percentiles


def measure(real: Tensor, fake: Tensor, protocol: Protocol, bootstrap: int = 0) -> dict[str, Any]:
    """The Frechet distance of two sets of features (N, D), of at least 2 clips each, and its uncertainty.

    Args:
        bootstrap: number of resampled sets for `bootstrap_interval`; 0 for no interval.

    Returns:
        "value": the distance. "bootstrap": the interval or None. "noise_floor": the distance between two halves of the
        real clips and, for comparison, between half of the real and half of the fake clips; None with fewer than 4
        clips per side.
    """
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
        result["bootstrap"] = bootstrap_interval(real, fake, protocol, bootstrap)
    return result


def stack_features(clips: Sequence[dict[str, Any]], side: str) -> Tensor:
    """Features of the "real" or "fake" side of all clips: float64 (N, D)."""
    return torch.from_numpy(np.stack([clip[f"{side}_features"] for clip in clips]))


def half(count: int, seed: int) -> Tensor:
    """bool (N,): the clips of the first half, a random one of each pair of neighbours."""
    return torch.tensor([(i + random.Random(f"{seed} {i // 2}").getrandbits(1)) % 2 == 0 for i in range(count)])


def bootstrap_interval(real: Tensor, fake: Tensor, protocol: Protocol, repeats: int) -> dict[str, Any]:
    """95% percentile interval of the distances of sets drawn with replacement; paired clips are drawn together.

    Resampled sets repeat clips, which increases their distances: with few clips, the distance of the sets themselves
    can lie below the interval.
    """
    generator = torch.Generator().manual_seed(protocol.seed)
    distances = []
    for _ in range(repeats):
        of_real = torch.randint(len(real), (len(real),), generator=generator)
        of_fake = of_real if protocol.paired else torch.randint(len(fake), (len(fake),), generator=generator)
        sides = real[of_real], fake[of_fake]
        distances.append(frechet_distance(*sides, ddof=protocol.ddof, dtype=protocol.dtype, root=protocol.root))
    return {
        "method": "95% percentile bootstrap interval",
        "repeats": repeats,
        "mean": float(np.mean(distances)),
        "std": float(np.std(distances, ddof=1)),
        "interval95": np.percentile(distances, (2.5, 97.5)).tolist(),
    }


def refusal(num_clips: int, num_frames: int, extractor: FeatureExtractor | None, missing: str) -> str | None:
    """Why no Frechet distance can be measured, `missing` without an extractor; or None when it can."""
    if extractor is None:
        return missing
    if num_frames < extractor.min_frames:
        return f"clips have {num_frames} frames, the detector needs at least {extractor.min_frames}"
    if num_clips < 2:
        return f"a Frechet distance needs at least 2 clips per side, there is {num_clips}"
    return None


def cautions(num_real: int, num_fake: int, width: int) -> list[str]:
    """Notes for the reader of a distance between few clips."""
    fewest, notes = min(num_real, num_fake), []
    if fewest < FEW_CLIPS:
        notes.append(
            f"a Frechet distance of {fewest} clips is biased upwards: compare it only with values of as many, and "
            f"use {FEW_CLIPS} or more for published numbers"
        )
    if fewest <= width:
        notes.append(f"{fewest} clips for features of {width} dimensions: the value is mostly bias")
    return notes
