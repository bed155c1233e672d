"""Where each id of a clip stands and which word list it speaks of; and the sequences that a generator reads.

A clip is four segments in this order: adjectives, nouns, adverbs, verbs. Spatial queries give adjectives and nouns,
temporal queries adverbs and verbs. Every query gives `modifiers_per_query` modifiers (nearest first, query after
query) and one head word. Local ids count inside a word list; global ids give every list its own range, in the same
order, so that no two words share an id.

With `lookup: union` (paper) a query gives one word of its two lists together, and a clip is two segments, spatial and
temporal. A word has the same global id either way.

An image has no motion: its ids are the spatial ones of a clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

LOOKUPS = ("modifiers_and_head", "union")
Part = TypeVar("Part")


@dataclass(frozen=True)
class Segment:
    """One run of ids: places [start, start + length) of the sequence, words [vocab_start, vocab_start + list_size)."""

    name: str
    start: int
    length: int
    vocab_start: int
    list_size: int

    @property
    def places(self) -> slice:
        return slice(self.start, self.start + self.length)


@dataclass(frozen=True)
class TokenLayout:
    """Lengths, vocabulary ranges and id arithmetic of a clip's tokens; the defaults are the release's.

    Without temporal queries it is the layout of an image.
    """

    num_spatial: int = 256
    num_temporal: int = 1024
    adjectives: int = 5078
    nouns: int = 5403
    adverbs: int = 1872
    verbs: int = 9267
    modifiers_per_query: int = 2
    lookup: str = "modifiers_and_head"

    def __post_init__(self) -> None:
        if self.lookup not in LOOKUPS:
            raise ValueError(f"lookup must be one of {', '.join(LOOKUPS)}; got {self.lookup!r}")

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """adjective, noun, adverb, verb; or spatial, temporal where a query gives one word of the union.

        Those of the temporal queries are left out where there are none.
        """
        if self.lookup == "union":
            sizes: tuple[tuple[str, int, int], ...] = (
                ("spatial", self.num_spatial, self.adjectives + self.nouns),
                ("temporal", self.num_temporal, self.adverbs + self.verbs),
            )
        else:
            sizes = (
                ("adjective", self.num_spatial * self.modifiers_per_query, self.adjectives),
                ("noun", self.num_spatial, self.nouns),
                ("adverb", self.num_temporal * self.modifiers_per_query, self.adverbs),
                ("verb", self.num_temporal, self.verbs),
            )
        segments: list[Segment] = []
        start = vocab_start = 0
        for name, length, list_size in sizes if self.num_temporal else sizes[: len(sizes) // 2]:
            segments.append(Segment(name, start, length, vocab_start, list_size))
            start, vocab_start = start + length, vocab_start + list_size
        return tuple(segments)

    def segment(self, name: str) -> Segment:
        """The segment of this name."""
        for segment in self.segments:
            if segment.name == name:
                return segment
        raise ValueError(f"no segment {name!r}; there are {', '.join(s.name for s in self.segments)}")

    @property
    def spatial(self) -> TokenLayout:
        """Of an image: the spatial segments alone, at the same places, their words with the same global ids."""
        return replace(self, num_temporal=0, adverbs=0, verbs=0)

    def by_branch(self, parts: list[Part]) -> tuple[list[Part], list[Part]]:
        """What belongs to each segment, in their order -> that of the spatial and that of the temporal branch."""
        half = len(parts) // 2 if self.num_temporal else len(parts)
        return parts[:half], parts[half:]

    @property
    def length(self) -> int:
        """Ids per clip."""
        return self.segments[-1].start + self.segments[-1].length

    @property
    def vocab_size(self) -> int:
        """Words of all lists together: global ids are in [0, vocab_size)."""
        return self.segments[-1].vocab_start + self.segments[-1].list_size

    @property
    def bits(self) -> float:
        """Bits per clip if every word of a list were equally likely: the sum over ids of log2(list size)."""
        return sum(s.length * math.log2(s.list_size) for s in self.segments)

    def _per_place(self, attribute: str, device: torch.device) -> Tensor:
        values = torch.tensor([getattr(s, attribute) for s in self.segments], device=device)
        lengths = torch.tensor([s.length for s in self.segments], device=device)
        return values.repeat_interleave(lengths, output_size=self.length)

    def to_global(self, local: Tensor) -> Tensor:
        """(B, L) ids inside each word list -> (B, L) global ids."""
        return local + self._per_place("vocab_start", local.device)

    def to_local(self, ids: Tensor) -> Tensor:
        """(B, L) global ids -> (B, L) ids inside each word list."""
        return ids - self._per_place("vocab_start", ids.device)

    def check(self, ids: Tensor) -> None:
        """Raise ValueError unless `ids` is an integer (B, L) tensor whose ids are words of their segment's list."""
        if not isinstance(ids, Tensor):
            raise ValueError(f"ids must be a torch tensor, got {type(ids).__name__}")
        if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
            raise ValueError(f"ids must be integers, got {ids.dtype}")
        if ids.ndim != 2 or ids.shape[1] != self.length or len(ids) == 0:
            raise ValueError(f"ids must have shape (batch >= 1, {self.length}), got {tuple(ids.shape)}")
        local = self.to_local(ids.long())
        wrong = ((local < 0) | (local >= self._per_place("list_size", ids.device))).nonzero()
        if len(wrong):
            row, place = wrong[0].tolist()
            segment = next(s for s in self.segments if s.start <= place < s.start + s.length)
            raise ValueError(
                f"id {int(ids[row, place])} at place {place} of clip {row} is no {segment.name}: those are "
                f"{segment.vocab_start}..{segment.vocab_start + segment.list_size - 1} "
                f"({len(wrong)} such ids in all)"
            )

    def split(self, local: Tensor) -> dict[str, Tensor]:
        """(B, L) local ids -> per segment (B, queries, words per query)."""
        counts = {"adjective": self.modifiers_per_query, "adverb": self.modifiers_per_query}
        return {s.name: local[:, s.places].unflatten(1, (-1, counts.get(s.name, 1))) for s in self.segments}
