"""Word counts and histograms of clips, and the class with the most similar ones in its examples.

Letters: B clips, L ids per clip, V words of all lists together, F width of a feature, n classes, k examples of each,
Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sweettok.tokenizer.layout import TokenLayout


def word_counts(ids: Tensor, vocab_size: int) -> Tensor:
    """Global ids (B, L) below `vocab_size` -> occurrences of each word, float32 (B, V)."""
    counts = torch.zeros(len(ids), vocab_size, device=ids.device)
    return counts.scatter_add_(1, ids, torch.ones(1, device=ids.device).expand(ids.shape))


def histograms(counts: Tensor, layout: TokenLayout, kinds: Sequence[str]) -> Tensor:
    """Counts (B, V), or bool (B, V) -> (B, F): square roots of the relative frequencies of each kind's words.

    The dot product of two features is the mean of the kinds' Bhattacharyya coefficients, between 0 and 1.
    """
    parts = [_shares(part).sqrt() for part in _parts(counts, layout, kinds)]
    return torch.cat(parts, dim=1) / len(parts) ** 0.5


def mean_vectors(counts: Tensor, layout: TokenLayout, kinds: Sequence[str], codes: Tensor) -> Tensor:
    """Counts (B, V) and code vectors (V, C) -> (B, F): mean vectors of the words of each kind, concatenated."""
    pairs = zip(_parts(counts, layout, kinds), _parts(codes.T, layout, kinds), strict=True)
    return torch.cat([_shares(part) @ table.T for part, table in pairs], dim=1)


def nearest_by_product(queries: Tensor, support: Tensor) -> Tensor:
    """Queries (Q, F), support (n, k, F) -> (Q,) index of the class with the largest mean dot product."""
    return (queries @ support.mean(1).T).argmax(1)


def nearest_by_distance(queries: Tensor, support: Tensor) -> Tensor:
    """Queries (Q, F), support (n, k, F) -> (Q,) index of the class with the nearest mean, by Euclidean distance."""
    return torch.cdist(queries, support.mean(1)).argmin(1)


def _parts(values: Tensor, layout: TokenLayout, kinds: Sequence[str]) -> list[Tensor]:
    """The columns of each kind that has words."""
    chosen = [layout.kind_ranges[kind] for kind in kinds if len(layout.kind_ranges[kind])]
    if not chosen:
        raise ValueError(f"these ids are of images, which have no words of the kinds {', '.join(kinds)}")
    return [values[:, ids.start : ids.stop] for ids in chosen]


def _shares(counts: Tensor) -> Tensor:
    return counts / counts.sum(1, keepdim=True).clamp(min=1)
