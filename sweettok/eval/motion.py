"""Objects and motions of synthetic clips, found by the rule-based tracker in reconstructed and generated clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sweettok.eval.tracker import Track, track, wrapped

NEAR = 1.5  # pixels: an object this near to its original is at its place


@dataclass(frozen=True)
class ObjectMatch:
    """The object of a reconstruction compared with that of its original.

    Attributes:
        errors: (T,) distance of both centres in pixels; infinite where the reconstruction has no object of the colour.
        color: whether the colour is right.
        motion: the class of the motion in the reconstruction; None if there is no object.
    """

    errors: np.ndarray
    color: bool
    motion: str | None

    @property
    def near(self) -> float:
        """Fraction of the frames whose object is within `NEAR` pixels of the original's."""
        return float((self.errors <= NEAR).mean())


def match(original: Track, shown: Track) -> ObjectMatch:
    """Compare tracks of clips of one shape."""
    offsets = wrapped(shown.centers - original.centers, original.size)
    errors = np.nan_to_num(np.linalg.norm(offsets, axis=1), nan=np.inf)
    return ObjectMatch(errors, shown.color == original.color, shown.motion())


def match_clips(originals: Tensor, shown: Tensor) -> list[ObjectMatch]:
    """Track and compare uint8 clips (B, 3, T, H, W) and their reconstructions."""
    return [match(track(a), track(b)) for a, b in zip(originals, shown, strict=True)]


def motions(videos: Sequence[Tensor] | Tensor) -> list[str | None]:
    """The motion class of each uint8 clip (3, T, H, W)."""
    return [track(video).motion() for video in videos]
