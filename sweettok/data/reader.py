"""Reading a few frames of a video file, exactly and without decoding all of it, and still images."""

import ctypes
import io
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sweettok.data.backends import CannotOpen, ClipError, DecordVideo, PyAVVideo, Scale
from sweettok.data.lists import IMAGE_SUFFIXES
from sweettok.data.resize import RESIZES, Fit, center
from sweettok.data.shards import Member, as_source

POSITIONS = ("first", "center", "last", "random", "even")
SHORT = ("black", "repeat", "error")
BACKENDS = ("auto", "pyav", "decord")
Size = int | tuple[int, int] | None
Read = TypeVar("Read")


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a video file."""

    num_frames: int
    fps: float | None  # None if the file has no rate
    height: int  # upright
    width: int
    backend: str  # name of the decoder


def probe(path: str | Path) -> VideoInfo:
    """Facts about a video file; frames are counted over its packets. Raises ClipError."""
    with open_video(path) as video:
        height, width = video.native_size()
        return VideoInfo(video.num_frames, video.fps, height, width, video.name)


def count_frames(path: str | Path) -> int:
    """Number of frames of a video file, by decoding all of it. Raises ClipError when decoding fails anywhere."""
    with open_video(path) as video:
        if video.num_frames:
            video.frames(range(video.num_frames), lambda height, width: (16, 16))  # corrects num_frames
        return video.num_frames


def clip_places(
    num_frames: int,
    frames: int,
    position: str = "center",
    stride: int = 1,
    start: int | None = None,
    rng: random.Random | None = None,
    part: tuple[int, int] = (0, 1),
) -> range:
    """Positions, in display order, of the frames of a clip; fewer than `frames` when the video is too short.

    A clip spans `(frames - 1) * stride + 1` frames. Its position is

        center: the middle of the span is frame `num_frames // 2`, as in the release
        random: the first frame is drawn with `rng`, uniformly from all that fit
        even: with part (j, n), clip j of n clips whose starts are spread evenly over the video; n = 1 is the center
        first, last: at the start or the end of the video

    `start` is the first frame, instead of a position.
    """
    if frames < 1 or stride < 1:
        raise ValueError(f"frames and stride must be at least 1, got frames={frames}, stride={stride}")
    if position not in POSITIONS:
        raise ValueError(f"position must be one of {POSITIONS}, got {position!r}")
    index, count = part
    if not 0 <= index < count or (count > 1 and position != "even"):
        raise ValueError(f"part must be (j, n) with 0 <= j < n, and (0, 1) unless position is 'even', got {part}")
    if start is not None and not 0 <= start < num_frames:
        raise ValueError(f"start must be a frame of the video, 0..{num_frames - 1}, got {start}")
    span = (frames - 1) * stride + 1
    spare = max(0, num_frames - span)
    if start is None and position == "random":
        if rng is None:
            raise ValueError("position='random' needs rng, a random.Random; the global generator is never used")
        start = rng.randint(0, spare)
    elif start is None and count > 1:
        start = (2 * index * spare + count - 1) // (2 * (count - 1))  # rounded
    elif start is None:
        center = min(max(0, num_frames // 2 - span // 2), spare)
        start = {"first": 0, "last": spare, "center": center, "even": center}[position]
    return range(start, min(start + span, num_frames), stride)


def read_clip(
    path: str | Path,
    frames: int,
    size: Size,
    position: str = "center",
    stride: int = 1,
    resize: str = "stretch",
    short: str = "repeat",
    start: int | None = None,
    rng: random.Random | None = None,
    backend: str = "auto",
    part: tuple[int, int] = (0, 1),
) -> Tensor:
    """Frames of a video file -> uint8 (3, frames, H, W), RGB in 0..255. An image file gives one frame (3, 1, H, W).

    Args:
        frames: clip length; `stride` takes every stride-th frame of the video, whatever its frame rate.
        size: (height, width), one number for a square, or None for the native size.
        position, start, rng, part: which frames; see `clip_places`.
        resize: "stretch" ignores the aspect ratio (release), "crop" scales until the frame covers the size and crops
            the middle, "pad" scales until the frame is inside, on black. Bilinear.
        short: frames after the end of a short video: "repeat" of the last frame, "black" (release), or "error".
        backend: "pyav" decodes from the keyframe before the clip, "decord" from the start of the file (release); "auto"
            is pyav, and decord for files that pyav cannot open. Both give the same frames and pixels, except where
            resizing keeps the height and changes the width (chroma differs by 0.1 to 0.7 levels on average) and in
            some MPEG-4 AVI files (1 or 2 levels).

    Frames are upright. Nothing stays open, so forked workers can read. Raises ClipError for a frame that cannot be
    read, ValueError for wrong arguments.
    """
    if short not in SHORT:
        raise ValueError(f"short must be one of {SHORT}, got {short!r}")
    scale, target = _scaling(size, resize)
    if is_image(path):
        clip_places(1, frames, position, stride, None, rng, part)  # checks them
        if start:
            raise ClipError(f"{path}: the clip starts at frame {start}, an image has one frame")
        return read_image(path, size, resize)
    with open_video(path, backend) as video:
        arrays = None
        while arrays is None:  # repeated if the file has fewer frames than packets
            if video.num_frames == 0:
                raise ClipError(f"{path}: the video has no frames", permanent=True)
            if start is not None and start >= video.num_frames:
                raise ClipError(f"{path}: the clip starts at frame {start}, the video has {video.num_frames}")
            places = clip_places(video.num_frames, frames, position, stride, start, rng, part)
            if len(places) < frames and short == "error":
                reason = f"{video.num_frames} frames are too few for {frames} at stride {stride}"
                raise ClipError(f"{path}: {reason}", permanent=True)
            arrays = video.frames(places, scale)
    images = [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]
    images = images if target is None else [center(image, target) for image in images]
    if len({image.shape for image in images}) > 1:
        raise ClipError(f"{path}: the frame size changes within the clip; give a size")
    clip = torch.stack(images, dim=1)
    if clip.shape[1] == frames:
        return clip
    filler = torch.zeros_like(clip[:, -1:]) if short == "black" else clip[:, -1:]
    return torch.cat([clip, filler.expand(-1, frames - clip.shape[1], -1, -1)], dim=1)


def is_image(path: str | Path) -> bool:
    """Whether a file is a still image, by its suffix."""
    return as_source(path).suffix.lower() in IMAGE_SUFFIXES


def read_image(path: str | Path, size: Size, resize: str = "stretch") -> Tensor:
    """A still image (PNG, JPEG, WebP, BMP) -> uint8 (3, 1, H, W), RGB, upright; size and resize as in `read_clip`.

    16-bit channels are reduced to their high byte. Raises ClipError, also for animations.
    """
    from PIL import Image, ImageOps

    scale, target = _scaling(size, resize)
    source = as_source(path)
    _check_file(source)
    try:
        with Image.open(io.BytesIO(source.read()) if isinstance(source, Member) else source) as file:
            if file.format in ("WEBP", "PNG") and getattr(file, "n_frames", 1) > 1:
                reason = f"an animation of {file.n_frames} frames, not a still image: convert it to GIF or MP4"
                raise ClipError(f"{path}: {reason}", permanent=True)
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16-bit grey, which `convert` would cut off at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = image.convert("RGB")
    except ClipError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ClipError(f"{path}: not a readable image ({error})", permanent=True) from error
    height, width = scale(image.height, image.width)
    if (height, width) != (image.height, image.width):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    frame = torch.from_numpy(np.array(image)).permute(2, 0, 1)[:, None]
    return (frame if target is None else center(frame, target)).contiguous()


def read_within(seconds: float, path: Path, read: Callable[[], Read]) -> Read:
    """Result or exception of `read()`; ClipError if it takes longer than `seconds`.

    It runs on its own thread, because a signal cannot interrupt a decoder or disk that hangs. A late thread is
    abandoned; it ends when it returns to Python.
    """
    outcome: list[tuple[Read | None, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((read(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = Thread(target=run, daemon=True, name=f"reading {path}")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        raise ClipError(f"{path}: not read within {seconds:g} seconds", permanent=True)
    result, error = outcome.pop()
    if error is not None:
        raise error
    return result


@contextmanager
def open_video(path: str | Path, backend: str = "auto") -> Iterator[PyAVVideo | DecordVideo]:
    """Open a file with the first decoder that can read it. Raises ClipError."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    path = as_source(path)
    _check_file(path)
    kinds = {"pyav": (PyAVVideo,), "decord": (DecordVideo,), "auto": (PyAVVideo, DecordVideo)}[backend]
    reasons = []
    for kind in kinds:
        try:
            video = kind(path)
        except CannotOpen as error:
            reasons.append(str(error))
        except ImportError as error:
            reasons.append(f"{kind.name} is not installed ({error})")
        except OSError as error:  # of a shard
            raise ClipError(f"{path}: {error.strerror or error}") from error
        else:
            break
    else:
        raise ClipError(f"{path}: {'; '.join(reasons)}", permanent=True)
    try:
        yield video
    except CannotOpen as error:  # a decoder may reopen the file
        raise ClipError(f"{path}: {error}") from error
    finally:
        video.close()


def _check_file(path: Path | Member) -> None:
    """Raise ClipError for a missing or empty file; files in shards are known to be there."""
    if isinstance(path, Member):
        return
    try:
        found = Path(path).stat()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise ClipError(f"{path}: {reason}", permanent=True) from error
    if not stat.S_ISREG(found.st_mode):
        raise ClipError(f"{path}: not a file", permanent=True)
    if found.st_size == 0:
        raise ClipError(f"{path}: the file is empty", permanent=True)


def _scaling(size: Size, resize: str) -> tuple[Scale, tuple[int, int] | None]:
    """Scaling of the decoder, and the size to crop or pad to afterwards."""
    if resize not in RESIZES:
        raise ValueError(f"resize must be one of {RESIZES}, got {resize!r}")
    if size is None:
        return (lambda height, width: (height, width)), None
    target = (size, size) if isinstance(size, int) else tuple(size)
    if len(target) != 2 or min(target) < 1:
        raise ValueError(f"size must be (height, width) in pixels, one number or None, got {size!r}")
    return (lambda height, width: Fit(resize, (height, width), target).scaled), target
