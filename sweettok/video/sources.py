"""Clips for the tokenizer: of files, one or many, and what is read while others are being encoded.

Letters: B batch, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sweettok import pixels
from sweettok.data.preprocess import POSITIONS as PLACES
from sweettok.data.reader import read_clip
from sweettok.data.resize import RESIZES as POLICIES
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.output import TokenOutput
from sweettok.video.ahead import in_order
from sweettok.video.files import check_least
from sweettok.video.long import clip_length


class ClipReader:
    """Reads clips as one tokenizer takes them; for `aspect`, `start`, `stride` and `position` see `SweetTok.encode`.

    ValueError for options that mean nothing.
    """

    def __init__(
        self,
        tokenizer: SweetTok,
        aspect: str = "crop",
        start: int | None = None,
        stride: int = 1,
        position: str = "first",
    ):
        if aspect not in POLICIES:
            raise ValueError(f"aspect must be one of {', '.join(POLICIES)}; got {aspect!r}")
        if position not in PLACES:
            raise ValueError(f"position must be one of {', '.join(PLACES)}; got {position!r}")
        check_least("start", 0 if start is None else start, 0)
        check_least("stride", stride)
        self.tokenizer, self.aspect = tokenizer, aspect
        cut = {"start": start, "stride": stride, "position": position, "short": "repeat"}
        self.cut: dict[str, Any] = {"frames": clip_length(tokenizer), **cut}  # arguments of `read_clip`

    def file(self, path: str | Path) -> Tensor:
        """uint8 (3, T, H, W) of a video file, (3, 1, H, W) of an image; ClipError, naming the file."""
        size = (self.tokenizer.config.height, self.tokenizer.config.width)
        return read_clip(path, size=size, resize=self.aspect, **self.cut)

    def clip(self, source: str | Path | Tensor, name: str) -> tuple[str, Tensor]:
        """A name for errors and the clip, of a file or from a tensor (3, T, H, W), which becomes float32."""
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
        """Named clips -> (B, 3, T, H, W) on the tokenizer's device; ValueError unless all have one shape."""
        first, video = clips[0]
        for name, other in clips:
            if other.shape != video.shape:
                raise ValueError(
                    f"clips of one batch must be alike, and {first} has {video.shape[1]} frames, {name} "
                    f"{other.shape[1]}: encode images and videos apart"
                )
        videos = [clip.to(self.tokenizer.device) for _, clip in clips]
        if len({clip.dtype for clip in videos}) > 1:  # bytes of files beside floats of tensors
            videos = [clip if clip.is_floating_point() else pixels.to_float(clip) for clip in videos]
        return torch.stack(videos)


def read_batch(tokenizer: SweetTok, paths: str | Path | Sequence[str | Path], **options: Any) -> Tensor:
    """A path or a list of paths -> uint8 (B, 3, T, H, W); options and errors as of `SweetTok.encode`."""
    reader = ClipReader(tokenizer, **options)
    paths = [paths] if isinstance(paths, str | Path) else paths
    wrong = [type(path).__name__ for path in paths if not isinstance(path, str | Path)]
    if wrong or not paths:
        raise ValueError(
            f"a list must hold paths, at least one; got {wrong[0] if wrong else 'an empty list'} "
            "(for many clips, also tensors, there is encode_batches)"
        )
    return reader.stack([(str(path), reader.file(path)) for path in paths])


def encode_batches(
    tokenizer: SweetTok, sources: Iterable[str | Path | Tensor], batch_size: int, workers: int, **options: Any
) -> Iterator[TokenOutput]:
    """See `SweetTok.encode_batches`."""
    check_least("batch_size", batch_size)
    check_least("workers", workers)
    if isinstance(sources, str | Path) or not isinstance(sources, Iterable):
        raise ValueError(f"sources must be several paths or tensors; got {sources!r}: for a single one there is encode")
    reader, sources = ClipReader(tokenizer, **options), iter(sources)
    try:
        first = next(sources)
    except StopIteration:
        raise ValueError("there are no clips to encode: sources hold no path and no tensor") from None

    def outputs() -> Iterator[TokenOutput]:
        numbered = enumerate(chain((first,), sources))
        tasks = (partial(reader.clip, source, f"clip {number}") for number, source in numbered)
        with closing(in_order(tasks, batch_size, workers)) as clips:
            while batch := list(islice(clips, batch_size)):
                yield tokenizer.encode(reader.stack(batch))

    return outputs()
