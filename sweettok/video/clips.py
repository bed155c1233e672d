"""Clips for a tokenizer from files and tensors: one batch, or many that are read ahead by threads.

Letters: B clips, T frames, H W pixels.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor

from sweettok import pixels
from sweettok.segments import SegmentLayout, TokenBatch
from sweettok.video.chunks import check_least

Source = Tensor | str | Path | Sequence[str | Path]  # clips, a file, or files as one batch
Output = TypeVar("Output", bound=TokenBatch)
Item = TypeVar("Item")


class ClipTokenizer(Protocol):
    """Base class of tokenizers of clips (B, 3, T, H, W): the attributes and methods that this package needs."""

    config: Any  # with num_frames, height, width of a clip, and `preprocessing`
    long_class: Any  # class of the ids of its long videos, see `LongVideo`

    @property
    def device(self) -> torch.device: ...

    @property
    def clip_frames(self) -> int:
        """Frames of the clips that it was trained on; 1 for a tokenizer of images."""
        ...

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise ValueError for clips of a shape that does not fit."""

    def clip_layout(self, num_frames: int) -> SegmentLayout: ...

    def ids_hash(self) -> str: ...

    def encode(self, source: Tensor) -> Any: ...

    def decode(self, ids: Tensor) -> Tensor: ...

    def describe(self, ids: Tensor) -> Any:
        """Ids (B, L) -> the result of `encode` with these ids."""


def in_order(tasks: Iterable[Callable[[], Item]], ahead: int, workers: int = 1) -> Generator[Item, None, None]:
    """Yield the results of `tasks` in their order; threads run up to `ahead` of them before they are needed.

    Closing the generator waits for running tasks and starts no others, so that their sources can be closed afterwards.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    waiting: deque[Future[Item]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class ClipReader:
    """Reads clips in the shape of one tokenizer; for the options see `ClipMethods`."""

    def __init__(
        self,
        tokenizer: ClipTokenizer,
        resize: str | None = None,
        position: str | None = None,
        start: int | None = None,
        stride: int | None = None,
    ):
        check_least("start", 0 if start is None else start, 0)
        check_least("stride", 1 if stride is None else stride)
        self.tokenizer, self.start = tokenizer, start
        self.preprocessing = tokenizer.config.preprocessing.override(resize=resize, position=position, stride=stride)

    def file(self, path: str | Path) -> Tensor:
        """A video file -> uint8 (3, T, H, W), an image -> (3, 1, H, W). Raises ClipError."""
        config = self.tokenizer.config
        size = (config.height, config.width)
        clip: Tensor = self.preprocessing.read(path, self.tokenizer.clip_frames, size, self.start)
        return clip

    def clip(self, source: str | Path | Tensor, name: str) -> tuple[str, Tensor]:
        """A file or a tensor (3, T, H, W) -> its name for errors, and the clip (uint8 of a file)."""
        if isinstance(source, str | Path):
            return str(source), self.file(source)
        if not isinstance(source, Tensor):
            raise ValueError(f"{name} must be a path or a tensor (3, T, H, W), got {type(source).__name__}")
        try:
            video = pixels.check_video(source[None])
            self.tokenizer.check_clip(*video.shape[2:])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return name, video[0]

    def stack(self, clips: Sequence[tuple[str, Tensor]]) -> Tensor:
        """Named clips of one shape -> (B, 3, T, H, W) on the tokenizer's device."""
        first, video = clips[0]
        for name, other in clips:
            if other.shape != video.shape:
                raise ValueError(
                    f"clips of a batch must have one length; {first} has {video.shape[1]} frames, {name} "
                    f"{other.shape[1]}: encode images and videos separately"
                )
        videos = [clip.to(self.tokenizer.device) for _, clip in clips]
        if len({clip.dtype for clip in videos}) > 1:  # uint8 of files beside floats of tensors
            videos = [clip if clip.is_floating_point() else pixels.to_float(clip) for clip in videos]
        return torch.stack(videos)


class ClipMethods(ClipTokenizer, Generic[Output]):
    """Mixin of tokenizers: clips from files.

    Options set how a clip is made from a video file; by default as in training, `config.preprocessing`:

        resize: how frames get the tokenizer's size: "stretch", "crop" or "pad"
        position: part of the video that the clip is taken from: "first", "center" or "last"
        start: first frame of the clip, from 0, instead of a position
        stride: distance between the frames of the clip
    """

    def read(self, source: Source, **options: Any) -> Tensor:
        """Source of `encode` -> clips (B, 3, T, H, W): uint8 of files; tensors are returned unchanged.

        Options are those of the class. Raises ValueError for options with a tensor, and as `encode` does.
        """
        if not isinstance(source, str | Path | list | tuple):
            given = [name for name, value in options.items() if value is not None]
            if given:
                raise ValueError(f"{', '.join(given)}: only for files; the frames of a tensor are taken as they are")
            return cast(Tensor, source)
        reader, paths = ClipReader(self, **options), [source] if isinstance(source, str | Path) else source
        wrong = [type(path).__name__ for path in paths if not isinstance(path, str | Path)]
        if wrong or not paths:
            raise ValueError(
                f"a list must hold paths, at least one; got {wrong[0] if wrong else 'an empty list'} "
                "(encode_batches also takes tensors)"
            )
        return reader.stack([(str(path), reader.file(path)) for path in paths])

    def prepare(self, source: Source, **options: Any) -> Tensor:
        """Source of `encode` -> float32 clips (B, 3, T, H, W) in [-0.5, 0.5] on the tokenizer's device.

        Options are those of the class. Raises ValueError for other shapes, types and ranges.
        """
        video = self.read(source, **options)
        images, video = video, pixels.as_clips(video)
        if video is not images and 1 < len(images) == self.config.num_frames:
            text = f"{len(images)} images: if they are the frames of one clip, give video.transpose(0, 1)[None]"
            warnings.warn(text, stacklevel=3)
        video = pixels.check_video(video.to(self.device) if isinstance(video, Tensor) else video)
        self.check_clip(*video.shape[2:])
        return video

    def encode_batches(
        self, sources: Iterable[str | Path | Tensor], batch_size: int = 8, workers: int = 2, **options: Any
    ) -> Iterator[Output]:
        """Many clips -> one output per `batch_size` of them, in order; the last batch may be smaller.

        Memory does not grow with the number of clips: `workers` threads read the next batch while one is encoded.

        Args:
            sources: paths and tensors (3, T, H, W), uint8 or float in [-0.5, 0.5], in any order; a generator is read
                as needed. All must have the same number of frames.
            options: resize, position, start and stride of files, as in `encode`.

        Raises ValueError at once for wrong arguments and for no clips. A clip that cannot be read or does not fit
        raises it with its batch; the message names the file (ClipError) or the number of the tensor, from 0.
        """
        check_least("batch_size", batch_size)
        check_least("workers", workers)
        if isinstance(sources, str | Path) or not isinstance(sources, Iterable):
            raise ValueError(f"sources must be several paths or tensors; got {sources!r}: use encode for a single one")
        reader, sources = ClipReader(self, **options), iter(sources)
        try:
            first = next(sources)
        except StopIteration:
            raise ValueError("there are no clips to encode: sources hold no path and no tensor") from None

        def outputs() -> Iterator[Output]:
            numbered = enumerate(chain((first,), sources))
            tasks = (partial(reader.clip, source, f"clip {number}") for number, source in numbered)
            with closing(in_order(tasks, batch_size, workers)) as clips:
                while batch := list(islice(clips, batch_size)):
                    yield self.encode(reader.stack(batch))

        return outputs()
