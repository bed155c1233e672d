"""From a file to a clip tensor: which frames are taken, and how they are resized; part of a model's config."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sweettok.config import choice, whole
from sweettok.data.backends import ClipError
from sweettok.data.reader import SHORT, Size, is_image, open_video, read_clip, read_image
from sweettok.data.resize import RESIZES, Fit, center
from sweettok.pixels import remedy

POSITIONS = ("first", "center", "last")  # of one clip in a video


@dataclass(frozen=True)
class Preprocessing:
    """How a clip is made from a video file; the options of `read_clip`."""

    resize: str = "stretch"  # how frames get the size: "stretch" (release), "crop" the middle, or "pad" with black bars
    position: str = "center"  # which part of the video: "first", "center" or "last"
    stride: int = 1  # every stride-th frame is taken, whatever the frame rate
    short: str = "repeat"  # after the end of a short video: "repeat" of the last frame, "black" (release), or "error"

    def __post_init__(self) -> None:
        choice("resize", self.resize, RESIZES)
        choice("position", self.position, POSITIONS)
        choice("short", self.short, SHORT)
        whole(self, "preprocessing", 1, "stride")

    def override(self, **options: Any) -> Preprocessing:
        """A copy with the options that are not None."""
        return dataclasses.replace(self, **{name: value for name, value in options.items() if value is not None})

    def read(self, path: str | Path, frames: int, size: Size, start: int | None = None) -> Tensor:
        """A video file -> uint8 (3, frames, H, W), an image file -> (3, 1, H, W); see `read_clip`."""
        return read_clip(path, frames, size, self.position, self.stride, self.resize, self.short, start)


class FrameStream(NamedTuple):
    """Frames (3, *fit.size), and the average frames per second, None if the file has no rate."""

    frames: Iterator[Tensor]
    fit: Fit
    fps: float | None


@contextmanager
def open_frames(
    source: str | Path | Tensor, resize: str, size: tuple[int, int], max_frames: int | None = None
) -> Iterator[FrameStream]:
    """All frames of a video or image file, uint8, or of a tensor (3, T, H, W) or (1, 3, T, H, W), of its type.

    A file is decoded once, one frame at a time, whatever its frame times. Pixels are those of `read_clip`. Raises
    ClipError for files that cannot be read, ValueError for other sources.
    """
    if isinstance(source, Tensor):
        video = source[0] if source.ndim == 5 and len(source) == 1 else source
        if video.ndim != 4 or video.shape[0] != 3 or video.numel() == 0:
            shape = f"{tuple(source.shape)}{remedy(source.shape)}"
            raise ValueError(f"a long video must have shape (3, frames, height, width), got {shape}")
        fit = Fit(resize, (video.shape[2], video.shape[3]), size)
        yield FrameStream((fit.apply(frame) for frame in video.unbind(1)[:max_frames]), fit, None)
    elif not isinstance(source, str | Path):
        raise ValueError(f"source must be a path or a tensor (3, frames, height, width), got {type(source).__name__}")
    elif is_image(source):
        height, width = read_image(source, None).shape[2:]
        yield FrameStream(iter(read_image(source, size, resize).unbind(1)), Fit(resize, (height, width), size), None)
    else:
        with open_video(source) as file:
            if file.num_frames == 0:
                raise ClipError(f"{source}: the video has no frames", permanent=True)
            fit = Fit(resize, file.native_size(), size)
            arrays = islice(file.stream(lambda height, width: fit.scaled), max_frames)
            frames = (center(torch.from_numpy(array).permute(2, 0, 1), size) for array in arrays)
            yield FrameStream(frames, fit, file.fps)
