"""Statistics of the pixels of both sides: a wrong range, order of channels or speed becomes a note in the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LEVELS = 40  # by how many grey levels the means of two sides may differ
RATIO = 2.0  # by how much their motion may differ
MARGIN = 1.2  # by how much the error may exceed that of another order of channels or frames


@dataclass
class PixelCheck:
    """Sums over the frames that reach the detector; parts merge into the whole.

    Args:
        low, high: extreme values. total: (3,) sum of each channel; values: number of its values.
        change, steps: sum and number of absolute differences between successive frames.
        black: clips that end in a black frame, as padded ones do.
    """

    clips: int = 0
    values: int = 0
    steps: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    total: Tensor | None = None
    change: float = 0.0
    black: int = 0

    def update(self, frames: Tensor) -> None:
        """Add frames (N, T, H, W, 3), uint8 or float in [0, 255]."""
        whole = not frames.dtype.is_floating_point
        kind = torch.int64 if whole else torch.float64
        moved = (frames[:, 1:].to(torch.int16 if whole else frames.dtype) - frames[:, :-1]).abs()
        total = frames.sum((0, 1, 2, 3), dtype=kind).double().cpu()
        black = (frames[:, -1].amax((1, 2, 3)) == 0).sum().item()
        low, high = (value.item() for value in frames.aminmax())
        change, values = moved.sum(dtype=kind).item(), frames[..., 0].numel()
        self._add(PixelCheck(len(frames), values, moved.numel(), low, high, total, change, black))

    def merge(self, other: PixelCheck) -> PixelCheck:
        """Both together; neither is changed."""
        both = PixelCheck(**vars(self))
        if other.clips:
            both._add(other)
        return both

    def _add(self, other: PixelCheck) -> None:
        self.total = other.total if self.total is None else self.total + other.total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        for name in ("clips", "values", "steps", "change", "black"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def summary(self) -> dict[str, Any]:
        """Extremes, mean of red, green and blue, mean change from frame to frame, in [0, 255]; and padded clips."""
        return {
            "min": self.low,
            "max": self.high,
            "mean_rgb": (self.total / self.values).tolist(),
            "motion": self.change / self.steps if self.steps else 0.0,
            "clips_ending_black": self.black,
        }


@dataclass
class OrderCheck:
    """Squared errors of clips against their originals: as they are, with red and blue exchanged, with time reversed."""

    plain: int = 0
    exchanged: int = 0
    reversed: int = 0

    def update(self, real: Tensor, fake: Tensor) -> None:
        """Add uint8 clips (N, 3, T, H, W) and their originals."""
        real, fake = real.int(), fake.int()
        for name, other in {"plain": fake, "exchanged": fake.flip(1), "reversed": fake.flip(2)}.items():
            setattr(self, name, getattr(self, name) + (real - other).square().sum(dtype=torch.int64).item())

    def merge(self, other: OrderCheck) -> OrderCheck:
        """Both together; neither is changed."""
        return OrderCheck(*(getattr(self, name) + getattr(other, name) for name in vars(self)))

    def suspicions(self) -> list[str]:
        """What looks wrong in the order of channels or frames."""
        notes = {
            "exchanged": "the error is smaller with red and blue exchanged: are the reconstructions BGR?",
            "reversed": "the error is smaller with the frames in reverse order: is time reversed?",
        }
        return [note for name, note in notes.items() if self.plain > MARGIN * getattr(self, name)]


def suspicions(real: dict[str, Any], fake: dict[str, Any]) -> list[str]:
    """What looks wrong in the fake clips beside the real ones, from their summaries."""
    notes = []
    apart = _distance(real["mean_rgb"], fake["mean_rgb"])
    if apart > LEVELS:
        notes.append(f"the mean colours of real and fake clips are {apart:.0f} grey levels apart: check their range")
    if apart > 5 and _distance(real["mean_rgb"], fake["mean_rgb"][::-1]) < apart / 3:
        notes.append("the mean colours agree better with red and blue exchanged: are the fake clips BGR?")
    low, high = sorted((real["motion"], fake["motion"]))
    if high > 0.5 and high > RATIO * low:
        which = "real" if real["motion"] > fake["motion"] else "fake"
        ratio = f"{high / max(low, 1e-9):.1f} times as much from frame to frame"
        notes.append(f"{which} clips change {ratio} as the others: are stride and frame rate equal?")
    if fake["clips_ending_black"] != real["clips_ending_black"]:
        ends = f"{real['clips_ending_black']} real and {fake['clips_ending_black']} fake clips"
        notes.append(f"{ends} end in black frames")
    return notes


def _distance(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
