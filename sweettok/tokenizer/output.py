"""What a batch of ids says: the result of `SweetTok.encode`, query by query and counted.

Letters: B clips, L ids per clip, V words of all lists together, C width of a code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sweettok.tokenizer.layout import TokenLayout

KINDS = ("adjective", "noun", "adverb", "verb")
BRANCHES = ("spatial", "temporal")
Grids = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class WordCount:
    """One word of a clip. share: of the clip's words of this kind. places: (row, column) of the queries that say it."""

    word: str
    count: int
    share: float
    places: tuple[tuple[int, int], ...]

    @property
    def centre(self) -> tuple[float, float]:
        """Mean row and column."""
        rows, columns = zip(*self.places, strict=True)
        return sum(rows) / len(rows), sum(columns) / len(columns)


@dataclass(frozen=True, repr=False)
class TokenOutput:
    """Ids (B, L) int64 of a batch of clips or images, and what they mean.

    `len(out)` is B. `out[i]` is clip i alone, still a batch; `out[2:5]` several; a loop gives clip after clip.
    """

    ids: Tensor
    layout: TokenLayout
    vocabulary: tuple[tuple[str, ...], ...]  # the word list of each segment of the layout
    # Rows and columns in which the queries of each branch stand, row by row; both grids cover the whole frame.
    grids: Grids
    num_frames: int | None = None  # of the clips that were encoded; the ids themselves do not tell it

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | slice) -> TokenOutput:
        ids = self.ids[index]
        return replace(self, ids=ids[None] if ids.ndim == 1 else ids)

    def __iter__(self) -> Iterator[TokenOutput]:
        return (self[clip] for clip in range(len(self)))

    def __repr__(self) -> str:
        segments = ", ".join(f"{segment.length} {segment.name}" for segment in self.layout.segments)
        told = f"TokenOutput({len(self)} x {self.layout.length} ids ({segments}) on {self.ids.device}"
        said = [queries[0] for queries in self.words(0, 1).values() if queries] if len(self) else []
        return f"{told}; the first begins {said})" if said else f"{told})"

    def to(self, device: torch.device | str) -> TokenOutput:
        """The same with its ids on another device."""
        return replace(self, ids=self.ids.to(device))

    @property
    def names(self) -> tuple[str, ...]:
        """The word of every global id."""
        return tuple(word for words in self.vocabulary for word in words)

    def queries(self, clip: int = 0) -> dict[str, list[list[int]]]:
        """{"spatial": [global ids that query 0 says, those of query 1, ...], "temporal": [...]}.

        Modifiers stand nearest first, a query's head word last. Images have no temporal queries: an empty list.
        """
        split = [part[0] for part in self.layout.split(self.ids[clip][None].cpu()).values()]
        branches = zip(BRANCHES, self.layout.by_branch(split), strict=True)
        return {branch: torch.cat(parts, dim=1).tolist() if parts else [] for branch, parts in branches}

    def words(self, clip: int = 0, max_queries: int | None = None) -> dict[str, list[str]]:
        """What each query of one clip says: {"spatial": ["small red | square", ...], "temporal": [...]}.

        Modifiers, nearest first, stand before the bar and the head word after it; one word of the union stands alone.
        `max_queries` limits each list. For images the second list is empty.
        """
        names = self.names

        def said(ids: list[int]) -> str:
            *modifiers, head = (names[i] for i in ids)
            return f"{' '.join(modifiers)} | {head}" if modifiers else head

        return {branch: [said(ids) for ids in told[:max_queries]] for branch, told in self.queries(clip).items()}

    def summary(self, clip: int = 0, top: int | None = None) -> dict[str, list[WordCount]]:
        """The words of one clip by kind (adjective, noun, adverb, verb), most frequent first, with their places.

        Words of one count stand in the order of their lists. `top` limits each list to so many.
        """
        names, said = self.names, defaultdict(list)
        for branch, told in self.queries(clip).items():
            columns = self.grids[branch][1]
            for query, ids in enumerate(told):
                for word in ids:
                    said[word].append(divmod(query, columns))
        summary = {}
        for kind, places in kind_ranges(self.layout).items():
            found = sorted((word for word in said if word in places), key=lambda word: (-len(said[word]), word))
            total = sum(len(said[word]) for word in found)
            summary[kind] = [
                WordCount(names[word], len(said[word]), len(said[word]) / total, tuple(said[word]))
                for word in found[:top]
            ]
        return summary


class QueryFeatures(NamedTuple):
    """What the queries have read of a batch of clips, before the lookup of their words."""

    spatial: Tensor  # (B, S, latent), float32, unit vectors
    temporal: Tensor | None  # (B, M, latent), likewise; None for images


class EmbeddingMatrix(NamedTuple):
    """The words of a tokenizer as rows for the table of a language model, from row `offset` on."""

    words: tuple[str, ...]  # of every global id; a word may be in several lists, and has then several ids
    vectors: Tensor  # (V, C), float32: row i is the projected vector of global id i
    offset: int

    def to_table(self, ids: Tensor) -> Tensor:
        """Global ids of any shape -> rows of the table."""
        return ids + self.offset

    def from_table(self, rows: Tensor) -> Tensor:
        """Rows of the table, as a language model has written them -> global ids; ValueError where one is no word."""
        wrong = rows[(rows < self.offset) | (rows >= self.offset + len(self.words))]
        if len(wrong):
            last = self.offset + len(self.words) - 1
            raise ValueError(f"row {int(wrong[0])} is no word of this tokenizer: those are {self.offset}..{last}")
        return rows - self.offset


def kind_ranges(layout: TokenLayout) -> dict[str, range]:
    """Global ids of the words of each kind."""
    ranges, start = {}, 0
    for kind, size in zip(KINDS, (layout.adjectives, layout.nouns, layout.adverbs, layout.verbs), strict=True):
        ranges[kind] = range(start, start + size)
        start += size
    return ranges
