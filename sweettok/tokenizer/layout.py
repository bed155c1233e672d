"""Layout of SweetTok's ids: which positions hold words of which list.

A clip has four segments in this order: adjectives, nouns, adverbs, verbs. Spatial queries give adjectives and nouns,
temporal queries adverbs and verbs: per query `modifiers_per_query` modifiers (nearest first, query after query) and
one head word. With `lookup: union` (paper) a query gives one word of its two lists together, and a clip has two
segments, spatial and temporal. A word has the same global id either way. An image has the spatial ids of a clip alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from sweettok.segments import SegmentLayout

LOOKUPS = ("modifiers_and_head", "union")
KINDS = ("adjective", "noun", "adverb", "verb")
BRANCHES = ("spatial", "temporal")
Part = TypeVar("Part")


@dataclass(frozen=True)
class TokenLayout(SegmentLayout):
    """Sizes of SweetTok's segments; the defaults are the release's. Without temporal queries it describes an image."""

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

    def sizes(self) -> tuple[tuple[str, int, int], ...]:
        """Segments adjective, noun, adverb, verb; with lookup union spatial, temporal. For images the first half."""
        sizes: tuple[tuple[str, int, int], ...]
        if self.lookup == "union":
            sizes = (
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
        return sizes if self.num_temporal else sizes[: len(sizes) // 2]

    @property
    def spatial(self) -> TokenLayout:
        """Layout of an image: the spatial segments alone, at the same positions and with the same global ids."""
        return replace(self, num_temporal=0, adverbs=0, verbs=0)

    @property
    def kind_ranges(self) -> dict[str, range]:
        """Global ids of the words of each kind (adjective, noun, adverb, verb), whatever the lookup."""
        ranges, start = {}, 0
        for kind, size in zip(KINDS, (self.adjectives, self.nouns, self.adverbs, self.verbs), strict=True):
            ranges[kind] = range(start, start + size)
            start += size
        return ranges

    def by_branch(self, parts: list[Part]) -> tuple[list[Part], list[Part]]:
        """One item per segment, in order -> the items of the spatial and of the temporal branch."""
        half = len(parts) // 2 if self.num_temporal else len(parts)
        return parts[:half], parts[half:]

    def split(self, ids: Tensor) -> dict[str, Tensor]:
        """(B, L) local or global ids -> per segment (B, queries, words per query)."""
        counts = {"adjective": self.modifiers_per_query, "adverb": self.modifiers_per_query}
        return {s.name: ids[:, s.places].unflatten(1, (-1, counts.get(s.name, 1))) for s in self.segments}
