"""Most frequent words of clips, and word counts as text and JSON data; see also `TokenOutput.summary`.

Letters: B clips, V words of all lists together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from sweettok.tokenizer.layout import KINDS, TokenLayout
from sweettok.tokenizer.output import WordCount


def frequent_words(
    counts: Tensor, layout: TokenLayout, names: Sequence[str], number: int, kinds: Iterable[str] = KINDS
) -> dict[str, list[str]]:
    """Counts (V,) of a clip -> its most frequent words of each kind, in the order of `TokenOutput.summary`."""
    return {kind: [names[i] for i in _frequent(counts, layout.kind_ranges[kind], number)] for kind in kinds}


def frequent_only(counts: Tensor, layout: TokenLayout, number: int) -> Tensor:
    """Counts (B, V) with zeros for all words that `frequent_words` does not return."""
    kept = torch.zeros_like(counts)
    for row, of_clip in enumerate(counts):
        for ids in layout.kind_ranges.values():
            places = _frequent(of_clip, ids, number)
            kept[row, places] = of_clip[places]
    return kept


def _frequent(counts: Tensor, ids: range, number: int) -> list[int]:
    order = torch.sort(counts[ids.start : ids.stop], descending=True, stable=True).indices[:number].tolist()
    return [ids[i] for i in order if counts[ids[i]] > 0]


def as_json(summary: dict[str, list[WordCount]]) -> dict[str, Any]:
    """A summary as JSON data."""
    return {kind: [asdict(word) for word in words] for kind, words in summary.items()}


def as_text(summary: dict[str, list[WordCount]], number: int) -> str:
    """Lines for the `number` most frequent words of each kind: count, share, mean position."""
    lines = []
    for kind, words in summary.items():
        lines.append(f"  {kind}: {len(words)} different words")
        for word in words[:number]:
            row, column = word.centre
            place = f"around row {row:.1f}, column {column:.1f}"
            lines.append(f"    {word.word:<20} {word.count:>5}  {word.share:>6.1%}  {place}")
    return "\n".join(lines)
