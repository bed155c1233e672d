"""Cutting a long video into overlapping clips of one length, and blending such clips into a video.

Letters: T frames of the video, L frames of a clip.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral

import torch
from torch import Tensor


def default_overlap(length: int) -> int:
    """Frames that neighbouring clips share by default: 2 of 17, 1 of 9, 0 of fewer than 8."""
    return length // 8


@dataclass(frozen=True)
class ChunkMap:
    """The frames of a video that each clip holds, and how neighbouring clips are blended.

    Clips start every `length - overlap` frames; the last one starts earlier, so that it ends with the video. Only a
    video of fewer than L frames is padded, by repeating its last frame.
    """

    num_frames: int  # T, of the video
    length: int  # L, of each clip
    overlap: int  # frames over which one clip fades into the next

    def __post_init__(self) -> None:
        check_least("num_frames", self.num_frames)
        check_least("length", self.length)
        check_overlap(self.overlap, self.length)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First frame of each clip, ascending."""
        last = max(0, self.num_frames - self.length)
        return (*range(0, last, self.length - self.overlap), last)

    @cached_property
    def joints(self) -> tuple[int, ...]:
        """First visible frame of each clip: 0, then `overlap` frames before the end of the previous clip."""
        return (0, *(start + self.length - self.overlap for start in self.starts[:-1]))

    def __len__(self) -> int:
        return len(self.starts)

    def shares(self, clip: int) -> Tensor:
        """(L,) float32: weight of this clip in each of its frames against the earlier clips.

        0 before its joint, 1 after the overlap, linear between.
        """
        start, joint = self.starts[clip], self.joints[clip]
        if clip == 0:
            return torch.ones(self.length)
        ramp = torch.arange(start - joint + 1, start - joint + 1 + self.length) / (self.overlap + 1)
        return ramp.clamp(0, 1)

    def weights(self) -> Tensor:
        """(clips, T) float32: weight of every clip in every frame of the video; each column sums to 1."""
        weights = torch.zeros(len(self), self.num_frames)
        for clip, start in enumerate(self.starts):
            places = slice(start, min(start + self.length, self.num_frames))
            share = self.shares(clip)[: self.num_frames - start]
            weights[:, places] *= 1 - share
            weights[clip, places] = share
        return weights


def check_least(name: str, value: object, least: int = 1) -> None:
    """Raise ValueError unless the value is a whole number of at least `least`."""
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}")


def check_overlap(overlap: int, length: int) -> None:
    if not isinstance(overlap, Integral) or not 0 <= overlap < length:
        raise ValueError(f"overlap must be 0..{length - 1} frames of clips of {length}, got {overlap}")


class ClipCutter:
    """Cuts a stream of frames (3, H, W) into the clips (3, L, H, W) of a `ChunkMap`; keeps one clip in memory.

    After iteration `num_frames` is the length of the stream.
    """

    def __init__(self, frames: Iterable[Tensor], length: int, overlap: int):
        check_overlap(overlap, length)
        self.frames, self.length, self.overlap = frames, length, overlap
        self.num_frames = 0

    def __iter__(self) -> Iterator[Tensor]:
        window: deque[Tensor] = deque(maxlen=self.length)
        cut, due = 0, self.length  # ends of the last clip and of the next one
        for frame in self.frames:
            window.append(frame)
            self.num_frames += 1
            if self.num_frames == due:
                yield torch.stack(tuple(window), dim=1)
                cut, due = due, due + self.length - self.overlap
        if self.num_frames > cut:
            window.extend([window[-1]] * (self.length - len(window)))
            yield torch.stack(tuple(window), dim=1)


def blend(clips: Iterable[Tensor], chunks: ChunkMap) -> Iterator[Tensor]:
    """The clips of a chunk map, float (3, L, H, W), in order -> consecutive blocks (3, n, H, W) of the video.

    A block holds the frames that no later clip changes; at most the overlap is kept in memory. Frames of one clip
    only, and of clips that are equal, do not change.
    """
    kept = None
    for clip, video in enumerate(clips):
        start, joint = chunks.starts[clip], chunks.joints[clip]
        video = video[:, joint - start : chunks.num_frames - start]
        if kept is not None and chunks.overlap:
            shares = chunks.shares(clip)[joint - start :][: chunks.overlap].to(video)[:, None, None]
            video = torch.cat((torch.lerp(kept, video[:, : chunks.overlap], shares), video[:, chunks.overlap :]), dim=1)
        final = video.shape[1] if clip == len(chunks) - 1 else chunks.joints[clip + 1] - joint
        yield video[:, :final]
        kept = video[:, final:]
