"""Ids of a clip as consecutive segments, each with its own vocabulary range.

Letters: B clips, L ids per clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Segment:
    """Positions [start, start + length) of a sequence, whose ids are in [vocab_start, vocab_start + vocab_size)."""

    name: str
    start: int
    length: int
    vocab_start: int
    vocab_size: int

    @property
    def places(self) -> slice:
        """Its positions in a sequence."""
        return slice(self.start, self.start + self.length)


class SegmentLayout:
    """Lengths, vocabulary ranges and id arithmetic of the segments of a sequence.

    Local ids count from 0 in every segment's vocabulary; global ids give each segment its own range, in order.
    Subclasses define `sizes`.
    """

    def sizes(self) -> Sequence[tuple[str, int, int]]:
        """Name, number of ids and size of the vocabulary of each segment, in order."""
        raise NotImplementedError

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The segments, in order."""
        segments: list[Segment] = []
        start = vocab_start = 0
        for name, length, vocab_size in self.sizes():
            segments.append(Segment(name, start, length, vocab_start, vocab_size))
            start, vocab_start = start + length, vocab_start + vocab_size
        return tuple(segments)

    def segment(self, name: str) -> Segment:
        """The segment of this name; ValueError if there is none."""
        for segment in self.segments:
            if segment.name == name:
                return segment
        raise ValueError(f"no segment {name!r}; there are {', '.join(s.name for s in self.segments)}")

    @property
    def length(self) -> int:
        """Ids per clip, L."""
        return self.segments[-1].start + self.segments[-1].length

    @property
    def vocab_size(self) -> int:
        """Size of all vocabularies together: global ids are in [0, vocab_size)."""
        return self.segments[-1].vocab_start + self.segments[-1].vocab_size

    @property
    def bits(self) -> float:
        """Bits per clip if the ids of a segment were uniform: the sum over ids of log2(vocabulary size)."""
        return sum(s.length * math.log2(s.vocab_size) for s in self.segments)

    def _per_id(self, attribute: str, device: torch.device) -> Tensor:
        values = torch.tensor([getattr(s, attribute) for s in self.segments], device=device)
        lengths = torch.tensor([s.length for s in self.segments], device=device)
        return values.repeat_interleave(lengths, output_size=self.length)

    def to_global(self, local: Tensor) -> Tensor:
        """(B, L) local ids -> (B, L) global ids."""
        return local + self._per_id("vocab_start", local.device)

    def to_local(self, ids: Tensor) -> Tensor:
        """(B, L) global ids -> (B, L) local ids."""
        return ids - self._per_id("vocab_start", ids.device)

    def check(self, ids: Tensor) -> None:
        """Raise ValueError unless `ids` is an integer (B, L) tensor of global ids, each in its segment's range."""
        if not isinstance(ids, Tensor):
            raise ValueError(f"ids must be a torch tensor, got {type(ids).__name__}")
        if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
            raise ValueError(f"ids must be integers, got {ids.dtype}")
        if ids.ndim != 2 or ids.shape[1] != self.length or len(ids) == 0:
            raise ValueError(f"ids must have shape (batch >= 1, {self.length}), got {tuple(ids.shape)}")
        local = self.to_local(ids.long())
        wrong = ((local < 0) | (local >= self._per_id("vocab_size", ids.device))).nonzero()
        if len(wrong):
            row, position = wrong[0].tolist()
            segment = next(s for s in self.segments if s.start <= position < s.start + s.length)
            raise ValueError(
                f"id {int(ids[row, position])} at position {position} of clip {row} is no {segment.name}: those are "
                f"{segment.vocab_start}..{segment.vocab_start + segment.vocab_size - 1} "
                f"({len(wrong)} such ids in all)"
            )


@dataclass(frozen=True, repr=False)
class TokenBatch:
    """Ids (B, L) int64 of a batch of clips, with their layout.

    `len(batch)` is B. `batch[i]` is clip i alone, still a batch; `batch[2:5]` several; a loop yields clip after clip.
    """

    ids: Tensor
    layout: SegmentLayout

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | slice) -> Self:
        ids = self.ids[index]
        return replace(self, ids=ids[None] if ids.ndim == 1 else ids)

    def __iter__(self) -> Iterator[Self]:
        return (self[clip] for clip in range(len(self)))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the ids, as JSON data."""
        raise NotImplementedError

    def to(self, device: torch.device | str) -> Self:
        """A copy with its ids on another device."""
        return replace(self, ids=self.ids.to(device))
