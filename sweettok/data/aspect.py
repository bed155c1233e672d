"""Frames of one size in a tokenizer of another: how they are fitted in, and how that is undone.

Pixels are taken to be square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

POLICIES = ("crop", "pad", "stretch")


class Box(NamedTuple):
    """Part of a frame, in its pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Fit:
    """How frames of `source` pixels (height, width) become frames of `size`.

    policy: "crop" scales until the frame just covers the size and keeps the middle, as `read_clip` does with
        resize="short_side_crop"; "pad" scales until the whole frame is inside, on black bars; "stretch" ignores the
        aspect. Frames that have the size already stay as they are, bit for bit.

    Raises ValueError for another policy and for sizes below one pixel.
    """

    policy: str
    source: tuple[int, int]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"aspect must be one of {', '.join(POLICIES)}; got {self.policy!r}")
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
        if self.policy == "crop":
            return cover(self.source, self.size)
        factor = min(edge / whole for edge, whole in zip(self.size, self.source, strict=True))
        height, width = (max(1, round(whole * factor)) for whole in self.source)
        return min(self.size[0], height), min(self.size[1], width)

    @property
    def corner(self) -> tuple[int, int]:
        """(top, left) of the scaled source frame in the fitted one; not above 0 where it is cropped, not below else."""
        top, left = (int((size - scaled) / 2) for size, scaled in zip(self.size, self.scaled, strict=True))
        return top, left

    @property
    def seen(self) -> Box:
        """The part of the source frame that is in the fitted one, to the pixel; all of it unless it was cropped."""
        if self.policy != "crop":
            return Box(0, 0, *self.source)
        factor = max(edge / whole for edge, whole in zip(self.size, self.source, strict=True))
        height, width = (
            min(whole, max(1, round(edge / factor))) for edge, whole in zip(self.size, self.source, strict=True)
        )
        return Box((self.source[0] - height) // 2, (self.source[1] - width) // 2, height, width)

    def apply(self, video: Tensor) -> Tensor:
        """uint8 or float (..., *source) -> (..., *size) of the same type. Black is 0 for uint8 and -0.5 for floats."""
        _check(video, self.source)
        return self.place(resize(video, self.scaled))

    def place(self, video: Tensor) -> Tensor:
        """What `apply` does after scaling: (..., *scaled) -> (..., *size)."""
        _check(video, self.scaled)
        if self.scaled == self.size:
            return video
        top, left = self.corner
        bottom, right = self.size[0] - top - self.scaled[0], self.size[1] - left - self.scaled[1]
        return F.pad(video, (left, right, top, bottom), value=0 if video.dtype == torch.uint8 else -0.5)

    def undo(self, video: Tensor) -> Tensor:
        """uint8 or float (..., *size) -> what it shows of the source at the source's scale, of the same type.

        That is (..., *source), without the bars; of a cropped frame only the part `seen`.
        """
        _check(video, self.size)
        if self.policy == "pad":
            top, left = self.corner
            video = video[..., top : top + self.scaled[0], left : left + self.scaled[1]]
        return resize(video, (self.seen.height, self.seen.width))


def cover(source: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The least (height, width) of the aspect of `source` that covers `size`."""
    factor = max(edge / whole for edge, whole in zip(size, source, strict=True))
    return max(size[0], round(source[0] * factor)), max(size[1], round(source[1] * factor))


def resize(video: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 or float (..., H, W) -> (..., *size) of the same type: bilinear, averaging where it gets smaller."""
    if tuple(video.shape[-2:]) == tuple(size):
        return video
    frames = video.reshape(-1, 1, *video.shape[-2:]).float()
    frames = F.interpolate(frames, tuple(size), mode="bilinear", antialias=True, align_corners=False)
    frames = frames.reshape(*video.shape[:-2], *size)
    return frames.round().clamp(0, 255).to(torch.uint8) if video.dtype == torch.uint8 else frames.to(video.dtype)


def _check(video: Tensor, size: tuple[int, int]) -> None:
    if not isinstance(video, Tensor) or video.ndim < 2 or tuple(video.shape[-2:]) != size:
        got = tuple(video.shape) if isinstance(video, Tensor) else type(video).__name__
        raise ValueError(f"expected frames of {size[0]}x{size[1]} pixels, (..., {size[0]}, {size[1]}); got {got}")
    if video.dtype != torch.uint8 and not video.dtype.is_floating_point:
        raise ValueError(f"frames must be uint8 or floating point, got {video.dtype}")
