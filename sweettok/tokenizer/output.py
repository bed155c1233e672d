"""Results of SweetTok: ids with their words, query features, and word vectors.

Letters: B clips, L ids per clip, S spatial queries, M temporal queries, V words of all lists, C width of a code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sweettok.segments import TokenBatch
from sweettok.tokenizer.layout import BRANCHES, TokenLayout
from sweettok.video.long import LongVideo


@dataclass(frozen=True)
class WordCount:
    """One word of a clip."""

    word: str
    count: int
    share: float  # of the clip's words of the same kind
    places: tuple[tuple[int, int], ...]  # (row, column) of the queries that chose it

    @property
    def centre(self) -> tuple[float, float]:
        """Mean row and column."""
        rows, columns = zip(*self.places, strict=True)
        return sum(rows) / len(rows), sum(columns) / len(columns)


@dataclass(frozen=True, repr=False)
class TokenOutput(TokenBatch):
    """Ids (B, L) int64 of a batch of clips or images, and their words; see `TokenBatch` for indexing."""

    layout: TokenLayout
    vocabulary: tuple[tuple[str, ...], ...]  # the word list of each segment
    grids: dict[str, tuple[int, int]]  # (rows, columns) of each branch's queries, row-major; both cover the whole frame
    num_frames: int | None = None  # of the encoded clips, None if unknown

    def __repr__(self) -> str:
        segments = ", ".join(f"{segment.length} {segment.name}" for segment in self.layout.segments)
        text = f"TokenOutput({len(self)} x {self.layout.length} ids ({segments}) on {self.ids.device}"
        first = [queries[0] for queries in self.words(0, 1).values() if queries] if len(self) else []
        return f"{text}; the first begins {first})" if first else f"{text})"

    @property
    def names(self) -> tuple[str, ...]:
        """The word of every global id."""
        return tuple(word for words in self.vocabulary for word in words)

    def queries(self, clip: int = 0) -> dict[str, list[list[int]]]:
        """Global ids of each query of a clip: {"spatial": [[ids of query 0], ...], "temporal": [...]}.

        Modifiers come nearest first, the head word last. Images have no temporal queries: an empty list.
        """
        split = [part[0] for part in self.layout.split(self.ids[clip][None].cpu()).values()]
        branches = zip(BRANCHES, self.layout.by_branch(split), strict=True)
        return {branch: torch.cat(parts, dim=1).tolist() if parts else [] for branch, parts in branches}

    def words(self, clip: int = 0, max_queries: int | None = None) -> dict[str, list[str]]:
        """Words of each query of a clip: {"spatial": ["small red | square", ...], "temporal": [...]}.

        Modifiers, nearest first, are before the bar, the head word is after it; with lookup union each query has one
        word. `max_queries` limits each list. For images the second list is empty.
        """
        names = self.names

        def text(ids: list[int]) -> str:
            *modifiers, head = (names[i] for i in ids)
            return f"{' '.join(modifiers)} | {head}" if modifiers else head

        return {branch: [text(ids) for ids in queries[:max_queries]] for branch, queries in self.queries(clip).items()}

    def summary(self, clip: int = 0, top: int | None = None) -> dict[str, list[WordCount]]:
        """Words of a clip by kind (adjective, noun, adverb, verb), most frequent first, with their queries' positions.

        Words with equal counts keep the order of their lists. `top` limits each list.
        """
        names, places = self.names, defaultdict(list)
        for branch, queries in self.queries(clip).items():
            columns = self.grids[branch][1]
            for query, ids in enumerate(queries):
                for word in ids:
                    places[word].append(divmod(query, columns))
        summary = {}
        for kind, ids_of_kind in self.layout.kind_ranges.items():
            found = sorted((word for word in places if word in ids_of_kind), key=lambda w: (-len(places[w]), w))
            total = sum(len(places[word]) for word in found)
            summary[kind] = [
                WordCount(names[word], len(places[word]), len(places[word]) / total, tuple(places[word]))
                for word in found[:top]
            ]
        return summary

    def to_dict(self) -> dict[str, Any]:
        """Everything but the ids, as JSON data."""
        return {"layout": asdict(self.layout), "vocabulary": self.vocabulary, "grids": self.grids}

    @classmethod
    def from_dict(cls, ids: Tensor, data: Mapping[str, Any]) -> TokenOutput:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError for other data."""
        grids = {branch: tuple(grid) for branch, grid in data["grids"].items()}
        return cls(ids, TokenLayout(**data["layout"]), tuple(map(tuple, data["vocabulary"])), grids)


class LongTokens(LongVideo[TokenOutput]):
    """The ids (N, L) of the N clips of a long video, and all that decoding needs besides the tokenizer."""

    output_class = TokenOutput

    def words(self, chunk: int = 0, max_queries: int | None = None) -> dict[str, list[str]]:
        """Words of each query of a clip, as `TokenOutput.words`."""
        return self.output.words(chunk, max_queries)


class QueryFeatures(NamedTuple):
    """Unit vectors of the queries of a batch of clips, before the lookup of their words."""

    spatial: Tensor  # (B, S, latent), float32
    temporal: Tensor | None  # (B, M, latent), likewise; None for images


class EmbeddingMatrix(NamedTuple):
    """Vectors of all words, to append to the embedding table of a language model from row `offset` on."""

    words: tuple[str, ...]  # of every global id; a word may be in several lists, and has then several ids
    vectors: Tensor  # (V, C), float32: row i is the projected vector of global id i
    offset: int

    def to_table(self, ids: Tensor) -> Tensor:
        """Global ids of any shape -> rows of the table."""
        return ids + self.offset

    def from_table(self, rows: Tensor) -> Tensor:
        """Rows of the table, as generated by a language model -> global ids; ValueError for rows of other tokens."""
        wrong = rows[(rows < self.offset) | (rows >= self.offset + len(self.words))]
        if len(wrong):
            last = self.offset + len(self.words) - 1
            raise ValueError(f"row {int(wrong[0])} is no word of this tokenizer: those are {self.offset}..{last}")
        return rows - self.offset
