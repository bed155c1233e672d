"""Clips of the page: examples, and uploaded files within limits.

Uploaded files are untrusted: only containers of videos are opened, with one decoder, and what their header says is
checked before a frame is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from sweettok.data.backends import ClipError
from sweettok.data.lists import VIDEO_SUFFIXES, find_files
from sweettok.data.reader import is_image, open_video, read_within
from sweettok.data.synthetic import CLASSES, synthetic_clip
from sweettok.tokenizer.model import SweetTok

CONTAINERS = "mov,mp4,matroska,webm,avi,gif,mpeg,mpegts,flv,asf,ogg"  # names of FFmpeg; a playlist could name any file
SEED = 1000  # of the synthetic examples; those that the tiny models are trained on have seed 0
MOST_EXAMPLES = 16
NO_VIDEO = "not a video that can be read; upload an MP4, WebM, MOV, MKV, AVI or GIF"
FILLED = {"repeat": ", the last one repeated", "black": ", then black"}
PLACES = {"first": "start", "center": "middle", "last": "end"}


@dataclass(frozen=True)
class Limits:
    """Largest uploads that are read."""

    megabytes: int = 50
    frames: int = 3600
    width: int = 3840
    height: int = 2160
    seconds: float = 30.0  # that reading a file may take


@dataclass(frozen=True)
class Clip:
    """A clip in the tokenizer's shape, uint8 (3, T, H, W), with a short name and a sentence about its origin."""

    name: str
    video: Tensor
    about: str


def examples(tokenizer: SweetTok, sources: Sequence[str | Path] = ()) -> list[Clip]:
    """Clips of video files, and of those in folders, at most 16, spread evenly; without sources, synthetic clips.

    Raises ValueError (ClipError) for a file that cannot be read and for folders without videos.
    """
    if not sources:
        size = (tokenizer.config.height, tokenizer.config.width)
        indices, frames = range(len(CLASSES)), tokenizer.clip_frames
        drawn = [synthetic_clip(index, frames, size, SEED, plain=True, held_out=True) for index in indices]
        return [Clip(clip.class_name, clip.video, f"Synthetic clip: {clip.caption.text}") for clip in drawn]
    folders = [Path(source) for source in sources]
    files = [file for path in folders for file in (find_files(path, VIDEO_SUFFIXES) if path.is_dir() else [path])]
    if not files:
        raise ValueError(f"no videos in {', '.join(map(str, sources))}: give videos, or folders that have some")
    count = min(len(files), MOST_EXAMPLES)
    return [_read(file, tokenizer, file.stem) for file in (files[i * len(files) // count] for i in range(count))]


def read_upload(path: str | Path, tokenizer: SweetTok, limits: Limits = Limits()) -> Clip:
    """The clip that `tokenizer.encode` takes from an uploaded video.

    Raises ClipError for a file that is not a video, is damaged, or exceeds a limit; the message has the file's name
    without its folder.
    """
    path = Path(path)
    try:
        _check_upload(path, limits)
        return read_within(limits.seconds, path, partial(_read, path, tokenizer, path.name, limits))
    except ClipError as error:
        raise ClipError(str(error).replace(str(path), path.name), error.permanent) from error


def _check_upload(path: Path, limits: Limits) -> None:
    import av

    def refuse(reason: str) -> ClipError:
        return ClipError(f"{path}: {reason}", permanent=True)

    if not path.is_file():
        raise refuse("no longer on the server; upload it again")
    size = path.stat().st_size
    if size == 0:
        raise refuse("the file is empty")
    if size > limits.megabytes * 1e6:
        raise refuse(f"{size / 1e6:.0f} MB; at most {limits.megabytes} MB are read: upload a shorter video")
    if is_image(path):
        raise refuse("a picture; upload a video")
    try:
        with av.open(str(path), options={"format_whitelist": CONTAINERS}, metadata_errors="replace") as file:
            stream = file.streams.best("video")
            cover = stream is not None and bool(stream.disposition & av.stream.Disposition.attached_pic)
            if (stream is None or cover) and file.streams.audio:
                raise refuse("sound without video; upload a video")
            if stream is None or stream.codec_context is None:
                raise refuse(NO_VIDEO)
            width, height = stream.codec_context.width, stream.codec_context.height
    except av.FFmpegError as error:
        raise refuse(NO_VIDEO) from error
    if max(width, height) > limits.width or min(width, height) > limits.height:
        raise refuse(f"frames of {width}x{height} pixels; at most {limits.width}x{limits.height} are read")


def _read(path: Path, tokenizer: SweetTok, name: str, limits: Limits | None = None) -> Clip:
    with open_video(path, "auto" if limits is None else "pyav") as video:
        found, (height, width) = video.num_frames, video.native_size()
    if limits is not None and found > limits.frames:
        raise ClipError(f"{path}: {found} frames; at most {limits.frames} are read: upload a shorter video", True)
    config, steps = tokenizer.config, tokenizer.config.preprocessing
    clip = steps.read(path, tokenizer.clip_frames, (config.height, config.width))
    span = (tokenizer.clip_frames - 1) * steps.stride + 1
    part = f"{tokenizer.clip_frames} of its {found} frames, from the {PLACES[steps.position]}"
    if found <= span:
        part = f"all of its {found} frames" + (FILLED[steps.short] if found < span else "")
    every = f", every {steps.stride}th frame" if steps.stride > 1 else ""
    resized = "" if (height, width) == clip.shape[2:] else f", resized from {width}x{height} ({steps.resize})"
    return Clip(name, clip, f"{name}: {part}{every}{resized}")
