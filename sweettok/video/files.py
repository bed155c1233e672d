"""Frames of files, images and tensors, fitted to a size: of whole videos as streams, of clips at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sweettok.data.aspect import Fit
from sweettok.data.backends import ClipError
from sweettok.data.lists import IMAGE_SUFFIXES
from sweettok.data.reader import open_video, probe, read_clip, read_image

OUTPUTS = (".mp4", ".mkv", ".mov")  # kinds of files that hold H.264
DEFAULT_FPS = 25.0  # for videos that do not tell theirs
RESIZES = {"crop": "short_side_crop", "stretch": "stretch"}  # policies that `read_clip` follows by itself
Source = str | Path | Tensor


class FrameStream(NamedTuple):
    """frames: (3, *fit.size) each, one after the other. fps: frames per second on average, None when untold."""

    frames: Iterator[Tensor]
    fit: Fit
    fps: float | None


@contextmanager
def open_frames(
    source: Source, aspect: str, size: tuple[int, int], max_frames: int | None = None
) -> Iterator[FrameStream]:
    """The frames of a video or image file, uint8, or of a clip (3, T, H, W) or (1, 3, T, H, W), of the clip's type.

    A file is decoded once, from front to back, one frame at a time, and never looked at for its frame times: a file of
    variable rate gives its frames as they come. The decoder scales them, as for `read_clip`.

    Raises ClipError naming the file, and the frame where one cannot be decoded; ValueError for other sources.
    """
    if max_frames is not None:
        check_least("max_frames", max_frames)
    if isinstance(source, Tensor):
        video = _as_video(source)
        fit = Fit(aspect, (video.shape[2], video.shape[3]), size)
        yield FrameStream((fit.apply(frame) for frame in video.unbind(1)[:max_frames]), fit, None)
    elif not isinstance(source, str | Path):
        raise ValueError(f"source must be a path or a tensor (3, frames, height, width), got {type(source).__name__}")
    elif _is_image(source):
        image, fit = _read_image(source, aspect, size)
        yield FrameStream(iter([image[:, 0]]), fit, None)
    else:
        with open_video(source) as file:
            if file.num_frames == 0:
                raise ClipError(f"{source}: the video has no frames", hopeless=True)
            fit = Fit(aspect, file.native_size(), size)
            arrays = islice(file.stream(lambda height, width: fit.scaled), max_frames)
            frames = (fit.place(torch.from_numpy(array).permute(2, 0, 1)) for array in arrays)
            yield FrameStream(frames, fit, file.fps)


def read_fitted(path: str | Path, aspect: str, size: tuple[int, int], frames: int, **cut: Any) -> Tensor:
    """One clip of a video file, uint8 (3, frames, *size), or an image, (3, 1, *size), fitted as by `open_frames`.

    `cut`: which frames, as in `read_clip`. Raises ClipError naming the file, ValueError for bad arguments.
    """
    if _is_image(path):
        return _read_image(path, aspect, size)[0]
    if aspect in RESIZES:
        return read_clip(path, frames, size, resize=RESIZES[aspect], **cut)
    info = probe(path)
    fit = Fit(aspect, (info.height, info.width), size)
    return fit.place(read_clip(path, frames, fit.scaled, **cut))


def _is_image(path: str | Path) -> bool:
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def _read_image(path: str | Path, aspect: str, size: tuple[int, int]) -> tuple[Tensor, Fit]:
    """uint8 (3, 1, *size), and how it was fitted."""
    image = read_image(path, None)
    fit = Fit(aspect, (image.shape[2], image.shape[3]), size)
    return fit.apply(image), fit


def _as_video(source: Tensor) -> Tensor:
    """(3, T, H, W) or (1, 3, T, H, W) -> (3, T, H, W)."""
    video = source[0] if source.ndim == 5 and len(source) == 1 else source
    if video.ndim != 4 or video.shape[0] != 3 or video.numel() == 0:
        raise ValueError(f"a long video must have shape (3, frames, height, width), got {tuple(source.shape)}")
    return video


def check_least(name: str, value: object, least: int = 1) -> None:
    """ValueError unless the value is a whole number of at least `least`."""
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}")


def check_output(path: str | Path, suffixes: tuple[str, ...]) -> None:
    """ValueError, before work is lost, for a path that is a folder or of another kind; its folder is made."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: expected a file name that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
