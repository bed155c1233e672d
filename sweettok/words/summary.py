"""How often a clip says each word, and where on the grid of its queries.

Works on the ids of both lookups: a word has the same global id either way, and its kind follows from it.
Letters: B clips, L ids per clip, V words of all lists together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sweettok.config import TokenizerConfig
from sweettok.layout import TokenLayout
from sweettok.models.tokenizer import TokenOutput

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


def query_grids(config: TokenizerConfig) -> Grids:
    """Rows and columns in which the queries of each branch stand, row by row; both grids cover the whole frame."""
    return {"spatial": config.spatial_query_grid, "temporal": config.grid[1:]}


def kind_ranges(layout: TokenLayout) -> dict[str, range]:
    """Global ids of the words of each kind."""
    ranges, start = {}, 0
    for kind, size in zip(KINDS, (layout.adjectives, layout.nouns, layout.adverbs, layout.verbs), strict=True):
        ranges[kind] = range(start, start + size)
        start += size
    return ranges


def check_kinds(kinds: Sequence[str]) -> None:
    """ValueError unless these are kinds of words, each named once."""
    if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds must be some of {', '.join(KINDS)}, each once; got {', '.join(kinds) or 'none'}")


def word_names(vocabulary: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The word of every global id, from the lists of `TokenOutput.vocabulary`."""
    return tuple(word for words in vocabulary for word in words)


def word_counts(ids: Tensor, layout: TokenLayout) -> Tensor:
    """Global ids (B, L) -> how often each word is said, float32 (B, V)."""
    counts = torch.zeros(len(ids), layout.vocab_size, device=ids.device)
    return counts.scatter_add_(1, ids, torch.ones(1, device=ids.device).expand(ids.shape))


def queries(ids: Tensor, layout: TokenLayout) -> dict[str, list[list[int]]]:
    """Global ids (L,) -> {"spatial": [ids that query 0 says, those of query 1, ...], "temporal": [...]}.

    A query's head word stands last. Those of an image have no temporal queries, and the second list is empty.
    """
    split = [part[0] for part in layout.split(ids[None].cpu()).values()]
    branches = zip(BRANCHES, layout.by_branch(split), strict=True)
    return {branch: torch.cat(parts, dim=1).tolist() if parts else [] for branch, parts in branches}


def count_words(output: TokenOutput, grids: Grids, clip: int = 0) -> dict[str, list[WordCount]]:
    """The words of one clip by kind, most frequent first; words of one count in the order of their lists.

    Raises ValueError for grids that are not those of the clip's queries.
    """
    layout, names = output.layout, word_names(output.vocabulary)
    said: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for branch, words in queries(output.ids[clip], layout).items():
        rows, columns = grids[branch]
        if words and rows * columns != len(words):
            raise ValueError(f"a grid of {rows}x{columns} does not hold the {len(words)} {branch} queries of these ids")
        for query, ids in enumerate(words):
            for word in ids:
                said[word].append(divmod(query, columns))
    summary = {}
    for kind, ids in kind_ranges(layout).items():
        found = sorted((word for word in said if word in ids), key=lambda word: (-len(said[word]), word))
        total = sum(len(said[word]) for word in found)
        summary[kind] = [
            WordCount(names[word], len(said[word]), len(said[word]) / total, tuple(said[word])) for word in found
        ]
    return summary


def frequent_words(
    counts: Tensor, layout: TokenLayout, names: Sequence[str], number: int, kinds: Iterable[str] = KINDS
) -> dict[str, list[str]]:
    """Counts (V,) of one clip -> its `number` most frequent words of each kind, in the order of `count_words`."""
    ranges = kind_ranges(layout)
    return {kind: [names[ranges[kind][i]] for i in _top(counts[_slice(ranges[kind])], number)] for kind in kinds}


def frequent_only(counts: Tensor, layout: TokenLayout, number: int) -> Tensor:
    """Counts (B, V) with zeros for all words but the `number` most frequent of each kind, as `frequent_words` lists."""
    kept = torch.zeros_like(counts)
    for ids in kind_ranges(layout).values():
        for row, part in enumerate(counts[:, _slice(ids)]):
            places = torch.tensor(_top(part, number), dtype=torch.long) + ids.start
            kept[row, places] = counts[row, places]
    return kept


def _top(counts: Tensor, number: int) -> list[int]:
    order = torch.sort(counts, descending=True, stable=True).indices[:number].tolist()
    return [i for i in order if counts[i] > 0]


def _slice(ids: range) -> slice:
    return slice(ids.start, ids.stop)


def as_json(summary: dict[str, list[WordCount]]) -> dict[str, Any]:
    """The summary as plain data."""
    return {kind: [asdict(word) for word in words] for kind, words in summary.items()}


def as_text(summary: dict[str, list[WordCount]], number: int) -> str:
    """A line for each of the `number` most frequent words of each kind: count, share, mean place."""
    lines = []
    for kind, words in summary.items():
        lines.append(f"  {kind}: {len(words)} different words")
        for word in words[:number]:
            row, column = word.centre
            lines.append(f"    {word.word:<20} {word.count:>5}  {word.share:>6.1%}  around row {row:.1f}, "
                         f"column {column:.1f}")  # fmt: skip
    return "\n".join(lines)
