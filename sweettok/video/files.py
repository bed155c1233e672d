"""Videos as streams: frames of a file, an image or a tensor, fitted to a size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sweettok.data.aspect import Fit
from sweettok.data.backends import ClipError
from sweettok.data.lists import IMAGE_SUFFIXES
from sweettok.data.reader import open_video, read_image

OUTPUTS = (".mp4", ".mkv", ".mov")  # kinds of files that hold H.264
DEFAULT_FPS = 25.0  # for videos that do not tell theirs
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
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, got {max_frames}")
    if isinstance(source, Tensor):
        video = _as_video(source)
        fit = Fit(aspect, (video.shape[2], video.shape[3]), size)
        yield FrameStream((fit.apply(frame) for frame in video.unbind(1)[:max_frames]), fit, None)
    elif not isinstance(source, str | Path):
        raise ValueError(f"source must be a path or a tensor (3, frames, height, width), got {type(source).__name__}")
    elif Path(source).suffix.lower() in IMAGE_SUFFIXES:
        image = read_image(source, None)
        fit = Fit(aspect, (image.shape[2], image.shape[3]), size)
        yield FrameStream(iter([fit.apply(image[:, 0])]), fit, None)
    else:
        with open_video(source) as file:
            if file.num_frames == 0:
                raise ClipError(f"{source}: the video has no frames", hopeless=True)
            fit = Fit(aspect, file.native_size(), size)
            arrays = islice(file.stream(lambda height, width: fit.scaled), max_frames)
            frames = (fit.place(torch.from_numpy(array).permute(2, 0, 1)) for array in arrays)
            yield FrameStream(frames, fit, file.fps)


def _as_video(source: Tensor) -> Tensor:
    """(3, T, H, W) or (1, 3, T, H, W) -> (3, T, H, W)."""
    video = source[0] if source.ndim == 5 and len(source) == 1 else source
    if video.ndim != 4 or video.shape[0] != 3 or video.numel() == 0:
        raise ValueError(f"a long video must have shape (3, frames, height, width), got {tuple(source.shape)}")
    return video


def check_output(path: str | Path, suffixes: tuple[str, ...]) -> None:
    """ValueError, before work is lost, for a path that is a folder or of another kind; its folder is made."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: expected a file name that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
