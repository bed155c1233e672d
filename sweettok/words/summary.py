"""How often clips say each word, as tensors, as text and as plain data; `TokenOutput.summary` counts a single clip.

Works on the ids of both lookups: a word has the same global id either way, and its kind follows from it.
Letters: B clips, L ids per clip, V words of all lists together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from sweettok.tokenizer.layout import KINDS, TokenLayout
from sweettok.tokenizer.output import WordCount


def check_kinds(kinds: Sequence[str]) -> None:
    """ValueError unless these are kinds of words, each named once."""
    if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds must be some of {', '.join(KINDS)}, each once; got {', '.join(kinds) or 'none'}")


def word_counts(ids: Tensor, layout: TokenLayout) -> Tensor:
    """Global ids (B, L) -> how often each word is said, float32 (B, V)."""
    counts = torch.zeros(len(ids), layout.vocab_size, device=ids.device)
    return counts.scatter_add_(1, ids, torch.ones(1, device=ids.device).expand(ids.shape))


def frequent_words(
    counts: Tensor, layout: TokenLayout, names: Sequence[str], number: int, kinds: Iterable[str] = KINDS
) -> dict[str, list[str]]:
    """Counts (V,) of one clip -> its `number` most frequent words of each kind, in the order of `summary`."""
    ranges = layout.kind_ranges
    return {kind: [names[ranges[kind][i]] for i in _top(counts[_slice(ranges[kind])], number)] for kind in kinds}


def frequent_only(counts: Tensor, layout: TokenLayout, number: int) -> Tensor:
    """Counts (B, V) with zeros for all words but the `number` most frequent of each kind, as `frequent_words` lists."""
    kept = torch.zeros_like(counts)
    for ids in layout.kind_ranges.values():
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
