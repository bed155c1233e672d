"""Pixel statistics of real and fake clips; a wrong value range, channel order or speed becomes a note in the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LEVELS = 40  # largest difference of mean colours, in grey levels
RATIO = 2.0  # largest ratio of motion
MARGIN = 1.2  # largest ratio of the error to that of another order of channels or frames
SAMPLED = 32  # rows, or columns, of the shorter side by which orders are compared, at least
OTHER_ORDERS = {
    "the error is smaller with red and blue exchanged: are the reconstructions BGR?": 1,
    "the error is smaller with the frames in reverse order: is time reversed?": 2,
}


def pixel_facts(frames: Tensor) -> list[dict[str, Any]]:
    """Frames (N, T, H, W, 3), uint8 or float in [0, 255] -> statistics of each clip, for `pixel_summary`.

    Minimum and maximum; sum and number of values per channel; sum and number of absolute differences between
    successive frames; whether the last frame is black, as in padded clips.
    """
    whole = not frames.dtype.is_floating_point
    dtype = torch.int64 if whole else torch.float64
    changes = (frames[:, 1:].to(torch.int16 if whole else frames.dtype) - frames[:, :-1]).abs()
    columns = {
        "min": frames.amin((1, 2, 3, 4)),
        "max": frames.amax((1, 2, 3, 4)),
        "sum": frames.sum((1, 2, 3), dtype=dtype),
        "change": changes.sum((1, 2, 3, 4), dtype=dtype),
        "black": frames[:, -1].amax((1, 2, 3)) == 0,
    }
    sizes = {"values": frames[0, ..., 0].numel(), "steps": changes[0].numel()}
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) | sizes for row in rows]


def pixel_summary(clips: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Minimum, maximum, mean colour, mean change between frames, all in [0, 255]; number of clips that end black."""
    total = {name: sum(clip[name] for clip in clips) for name in ("values", "steps", "change", "black")}
    channels = zip(*(clip["sum"] for clip in clips), strict=True)
    return {
        "min": min(clip["min"] for clip in clips),
        "max": max(clip["max"] for clip in clips),
        "mean_rgb": [sum(channel) / total["values"] for channel in channels],
        "motion": total["change"] / total["steps"] if total["steps"] else 0.0,
        "clips_ending_black": total["black"],
    }


def order_errors(real: Tensor, fake: Tensor) -> list[list[int]]:
    """Squared errors of each uint8 clip (N, 3, T, H, W): as it is, and with `fake` in each of OTHER_ORDERS.

    Of every n-th row and column, so that the shorter side has SAMPLED or more, up to twice as many.
    """
    step = max(1, min(real.shape[-2:]) // SAMPLED)
    real, fake = (video[..., ::step, ::step].int() for video in (real, fake))
    orders = [fake, *(fake.flip(dim) for dim in OTHER_ORDERS.values())]
    return torch.stack([(real - other).square().sum((1, 2, 3, 4)) for other in orders], dim=1).tolist()


def order_notes(errors: Sequence[Sequence[int]]) -> list[str]:
    """Notes on the order of channels or frames, from the `order_errors` of all clips."""
    plain, *others = (sum(column) for column in zip(*errors, strict=True))
    return [note for note, error in zip(OTHER_ORDERS, others, strict=True) if plain > MARGIN * error]


def pixel_notes(real: dict[str, Any], fake: dict[str, Any]) -> list[str]:
    """Notes on differences between real and fake clips, from their `pixel_summary`."""
    notes = []
    apart = _distance(real["mean_rgb"], fake["mean_rgb"])
    if apart > LEVELS:
        notes.append(f"the mean colours of real and fake clips differ by {apart:.0f} grey levels: check their range")
    if apart > 5 and _distance(real["mean_rgb"], fake["mean_rgb"][::-1]) < apart / 3:
        notes.append("the mean colours agree better with red and blue exchanged: are the fake clips BGR?")
    low, high = sorted((real["motion"], fake["motion"]))
    if high > 0.5 and high > RATIO * low:
        which = "real" if real["motion"] > fake["motion"] else "fake"
        ratio = f"{high / max(low, 1e-9):.1f} times as much between frames"
        notes.append(f"{which} clips change {ratio} as the others: are stride and frame rate equal?")
    if fake["clips_ending_black"] != real["clips_ending_black"]:
        ends = f"{real['clips_ending_black']} real and {fake['clips_ending_black']} fake clips"
        notes.append(f"{ends} end in black frames")
    return notes


def _distance(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
