"""Resizing frames to another size, and undoing it. Pixels are assumed to be square."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RESIZES = ("stretch", "crop", "pad")


class Box(NamedTuple):
    """Part of a frame, in its pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Fit:
    """How frames of `source` pixels are resized to `size`; frames of that size do not change.

    Policies: "stretch" ignores the aspect ratio, "crop" scales until the frame covers the size and keeps the middle,
    "pad" scales until the whole frame is inside, between black bars.
    """

    policy: str
    source: tuple[int, int]  # (height, width)
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if self.policy not in RESIZES:
            raise ValueError(f"resize must be one of {', '.join(RESIZES)}; got {self.policy!r}")
        for name in ("source", "size"):
            pixels = tuple(getattr(self, name))
            if len(pixels) != 2 or not all(isinstance(edge, int) and edge > 0 for edge in pixels):
                raise ValueError(f"{name} must be (height, width) in whole pixels; got {pixels}")
            object.__setattr__(self, name, pixels)

    @property
    def scaled(self) -> tuple[int, int]:
        """(height, width) of the whole source frame at the scale of `size`."""
        if self.policy == "stretch":
            return self.size
        factors = [edge / whole for edge, whole in zip(self.size, self.source, strict=True)]
        if self.policy == "crop":
            height, width = (round(whole * max(factors)) for whole in self.source)
            return max(self.size[0], height), max(self.size[1], width)
        height, width = (max(1, round(whole * min(factors))) for whole in self.source)
        return min(self.size[0], height), min(self.size[1], width)

    @property
    def corner(self) -> tuple[int, int]:
        """(top, left) of the scaled frame in the resized one: <= 0 if it is cropped, >= 0 if it is padded."""
        top, left = (int((size - scaled) / 2) for size, scaled in zip(self.size, self.scaled, strict=True))
        return top, left

    @property
    def seen(self) -> Box:
        """The part of the source frame that is in the resized one: all of it, unless it was cropped."""
        if self.policy != "crop":
            return Box(0, 0, *self.source)
        factor = max(edge / whole for edge, whole in zip(self.size, self.source, strict=True))
        height, width = (
            min(whole, max(1, round(edge / factor))) for edge, whole in zip(self.size, self.source, strict=True)
        )
        return Box((self.source[0] - height) // 2, (self.source[1] - width) // 2, height, width)

    def apply(self, video: Tensor, antialias: bool = True) -> Tensor:
        """uint8 or float (..., *source) -> (..., *size) of the same type. Black is 0 for uint8 and -0.5 for floats."""
        _check(video, self.source)
        return center(resize(video, self.scaled, antialias), self.size)

    def undo(self, video: Tensor) -> Tensor:
        """uint8 or float (..., *size) -> (..., *source) without bars; of a cropped frame only the part `seen`."""
        _check(video, self.size)
        if self.policy == "pad":
            top, left = self.corner
            video = video[..., top : top + self.scaled[0], left : left + self.scaled[1]]
        return resize(video, (self.seen.height, self.seen.width))


def resize(video: Tensor, size: tuple[int, int], antialias: bool = True) -> Tensor:
    """uint8 or float (..., H, W) -> (..., *size) of the same type: bilinear, by default with antialiasing."""
    if tuple(video.shape[-2:]) == tuple(size):
        return video
    frames = video.reshape(-1, 1, *video.shape[-2:]).float()
    frames = F.interpolate(frames, tuple(size), mode="bilinear", antialias=antialias, align_corners=False)
    frames = frames.reshape(*video.shape[:-2], *size)
    return frames.round().clamp(0, 255).to(torch.uint8) if video.dtype == torch.uint8 else frames.to(video.dtype)


def center(video: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 or float (..., H, W) -> (..., *size): each edge is cropped to its middle, or gets black on both sides."""
    if tuple(video.shape[-2:]) == tuple(size):
        return video
    missing = [edge - whole for edge, whole in zip(size, video.shape[-2:], strict=True)]
    top, left = (int(edge / 2) for edge in missing)
    margins = (left, missing[1] - left, top, missing[0] - top)
    return F.pad(video, margins, value=0 if video.dtype == torch.uint8 else -0.5)


def _check(video: Tensor, size: tuple[int, int]) -> None:
    if not isinstance(video, Tensor) or video.ndim < 2 or tuple(video.shape[-2:]) != size:
        got = tuple(video.shape) if isinstance(video, Tensor) else type(video).__name__
        raise ValueError(f"expected frames of {size[0]}x{size[1]} pixels, (..., {size[0]}, {size[1]}); got {got}")
    if video.dtype != torch.uint8 and not video.dtype.is_floating_point:
        raise ValueError(f"frames must be uint8 or floating point, got {video.dtype}")
