"""Videos as streams: frames of a file, an image or a tensor, fitted to a size, and blocks of frames into a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sweettok.data.aspect import Fit
from sweettok.data.backends import ClipError, DecordVideo, PyAVVideo, Scale, _Converter, _reason
from sweettok.data.lists import IMAGE_SUFFIXES
from sweettok.data.reader import _open, read_image
from sweettok.data.writer import _check, _encoding
from sweettok.files import write_aside

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
        with _open(source, "auto") as file:
            if file.num_frames == 0:
                raise ClipError(f"{source}: the video has no frames", hopeless=True)
            fit = Fit(aspect, file.native_size(), size)
            arrays = islice(_decoded(file, lambda height, width: fit.scaled), max_frames)
            frames = (fit.place(torch.from_numpy(array).permute(2, 0, 1)) for array in arrays)
            yield FrameStream(frames, fit, file.fps)


def _as_video(source: Tensor) -> Tensor:
    """(3, T, H, W) or (1, 3, T, H, W) -> (3, T, H, W)."""
    video = source[0] if source.ndim == 5 and len(source) == 1 else source
    if video.ndim != 4 or video.shape[0] != 3 or video.numel() == 0:
        raise ValueError(f"a long video must have shape (3, frames, height, width), got {tuple(source.shape)}")
    return video


def _decoded(video: PyAVVideo | DecordVideo, scale: Scale) -> Iterator[np.ndarray]:
    """uint8 (H, W, 3) arrays of all frames, in display order."""
    yield from _by_pyav(video, scale) if isinstance(video, PyAVVideo) else _by_decord(video, scale)


def _by_pyav(video: PyAVVideo, scale: Scale) -> Iterator[np.ndarray]:
    convert, place, damaged = _Converter(video.path, scale), 0, False
    try:
        video._open()
        for frame in video._container.decode(video._stream):
            damaged = frame.is_corrupt or (damaged and not frame.key_frame)
            if damaged:
                raise ClipError(f"{video.path}: frame {place} is damaged")
            yield convert(frame)
            place += 1
    except video._error as error:
        raise ClipError(f"{video.path}: damaged, decoding fails near frame {place} ({_reason(error)})") from error


def _by_decord(video: DecordVideo, scale: Scale) -> Iterator[np.ndarray]:
    reader = video._reader(*scale(*video.native_size()))
    for place in range(video.num_frames):
        try:
            array = reader.next().asnumpy()
        except video._errors as error:
            raise ClipError(f"{video.path}: damaged, decord fails at frame {place}") from error
        height, width = array.shape[:2]  # as in DecordVideo
        yield array.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)


def write_blocks(path: str | Path, blocks: Iterable[Tensor], fps: float) -> None:
    """uint8 (3, n, H, W) blocks that follow one another -> a video file like those of `write_video`, without sound."""
    import av

    if not 0 < fps < math.inf:
        raise ValueError(f"fps must be above 0, got {fps}")
    path, stream = Path(path), None
    with write_aside(path) as aside, av.open(str(aside), "w") as container:
        for block in blocks:
            _check(block, 4, "(3, T, H, W)")
            stream = stream or _add_stream(container, path, block.shape[2:], fps)
            for array in block.permute(1, 2, 3, 0).contiguous().cpu().numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        if stream is None:
            raise ValueError(f"cannot write {path}: the video has no frames")
        container.mux(stream.encode())


def check_output(path: str | Path, suffixes: tuple[str, ...]) -> None:
    """ValueError, before work is lost, for a path that is a folder or of another kind; its folder is made."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: expected a file name that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)


def _add_stream(container: Any, path: Path, size: tuple[int, int], fps: float) -> Any:
    height, width = size
    codec, pixels, options = _encoding(path, False, height % 2 == 1 or width % 2 == 1)
    stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
    stream.width, stream.height, stream.pix_fmt = width, height, pixels
    stream.codec_context.thread_count = 1
    return stream
