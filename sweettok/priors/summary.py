"""Describe a prior: sizes, frequent words, nearest words, overlap with another prior, statistics, and a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sweettok.priors.build import Built, Rules
from sweettok.priors.graph import SIDES, Prior, WordGraph, normalised_adjacency
from sweettok.store import COMMENT, write_aside


class WordList(NamedTuple):
    """One of the two word lists of a graph."""

    name: str
    span: slice  # in the vocabulary
    words: tuple[str, ...]
    frequent: list[int]  # indices in `words`, by falling frequency


def describe(prior: Prior, most: int = 10) -> str:
    """List sizes, vector widths, numbers of edges, and the `most` most frequent words, as lines of text."""
    lines = []
    for side in SIDES:
        graph = getattr(prior, side)
        first, second = lists = list(_lists(side, graph))
        sizes = f"{len(first.words)} {first.name} + {len(second.words)} {second.name}"
        lines.append(f"{side}: {sizes}, vectors of {graph.dim}, {graph.edges.shape[1]} edges")
        if graph.origin:
            lines.append(f"  {graph.origin}")
        for part in lists:
            lines.append(f"  {part.name}: " + ", ".join(part.words[i] for i in part.frequent[:most]))
    return "\n".join(lines)


def describe_neighbors(prior: Prior, words: Sequence[str] = (), most: int = 5, nearest: int = 5) -> str:
    """The nearest words of the same list to `words`, or to the `most` most frequent words of each list.

    They are compared by the word vectors, and by the vectors after `smoothed`. "spread" is the ratio of the standard
    deviations of a list after and before it: near 0, the graph makes all words nearly equal.

    Raises ValueError for a word that is in none of the lists.
    """
    lines, known = [], set()
    for side in SIDES:
        graph = getattr(prior, side)
        averaged = smoothed(graph)
        for name, span, listed, frequent in _lists(side, graph):
            tables = graph.vectors[span], averaged[span]
            left = _spread(tables[1]) / max(_spread(tables[0]), 1e-12)
            lines.append(f"{name}: spread {left:.0%} after the graph")
            for i in [listed.index(word) for word in words if word in listed] if words else frequent[:most]:
                known.add(listed[i])
                near = (", ".join(listed[k] for k in _nearest(table, i, nearest)) for table in tables)
                lines.append(f"  {listed[i]}: {' | '.join(near)}")
    if set(words) - known:
        raise ValueError(f"in none of the lists: {', '.join(sorted(set(words) - known))}")
    return "\n".join(["nearest words, before | after the graph", *lines])


def describe_overlap(first: Prior, second: Prior, most: int = 10) -> str:
    """For each list, the number of words in both priors, and the most frequent words that are in only one."""
    lines = []
    for side in SIDES:
        graphs = getattr(first, side), getattr(second, side)
        for one, two in zip(*(_lists(side, graph) for graph in graphs), strict=True):
            both, sizes = len(set(one.words) & set(two.words)), (len(one.words), len(two.words))
            shares = " and ".join(f"{both / size:.1%} of {size}" for size in sizes)
            lines.append(f"{one.name}: {both} in both, {shares}")
            for which, mine, other in (("first", one, two), ("second", two, one)):
                only = [mine.words[i] for i in mine.frequent if mine.words[i] not in set(other.words)][:most]
                lines.append(f"  only in the {which}: {', '.join(only) or '-'}")
        pairs = [{tuple(sorted((g.words[a], g.words[b]))) for a, b in g.edges.unique(dim=1).T.tolist()} for g in graphs]
        lines.append(f"{side} pairs: {len(pairs[0] & pairs[1])} in both, of {len(pairs[0])} and {len(pairs[1])}")
    return "\n".join(lines)


def statistics(built: Built, rules: Rules) -> dict[str, Any]:
    """Statistics of a build for a JSON file."""
    counts, lists, graphs = built.counts, {}, {}
    for side, parts in SIDES.items():
        graph = getattr(built.prior, side)
        for part, (_, span, words, _) in zip(parts, _lists(side, graph), strict=True):
            kept, found = graph.counts[span], [count for (_, other), count in counts.words.items() if other == part]
            lists[part] = {
                "words": len(words),
                "distinct_in_captions": len(found),
                "occurrences": int(kept.sum()),
                "share_of_occurrences": int(kept.sum()) / sum(found),
                "rarest_count": int(kept.min()),
                "min_count": rules.min_count.get(part, 1),
            }
        degrees = partners(graph)
        graphs[side] = {
            "width": graph.dim,
            "edges": graph.edges.shape[1],
            "pairs": int(degrees.sum()) // 2,
            "words_without_partner": int((degrees == 0).sum()),
            "partners_median": float(np.median(degrees)),
            "partners_most": int(degrees.max()),
        }
    return {
        "kind": "prior",
        "captions": counts.captions,
        "lists": lists,
        "graphs": graphs,
        "rules": {name: getattr(rules, name) for name in ("most", "neighbors", "min_shared", "max_weight")},
        "words_without_vector": len(built.unknown),
        "vectors_scaled_by": built.scale,
        "origin": built.prior.spatial.origin,
    }


def partners(graph: WordGraph) -> np.ndarray:
    """int64 (V,), the number of other words that each word is connected to."""
    pairs = graph.edges.sort(dim=0).values.unique(dim=1)
    return torch.bincount(pairs[:, pairs[0] != pairs[1]].flatten(), minlength=len(graph.words)).numpy()


def plot(prior: Prior, path: Path) -> None:
    """Plot the occurrences and the partners of the words of each list by rank, on logarithmic axes.

    Raises ValueError for a prior without counts, or without matplotlib (extra "plot").
    """
    if any(getattr(prior, side).counts is None for side in SIDES):
        raise ValueError("this prior has no counts to plot")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError('plots need matplotlib: pip install "sweettok[plot]"') from error
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for side in SIDES:
        graph = getattr(prior, side)
        for name, span, _, _ in _lists(side, graph):
            for axis, values in zip(axes, (graph.counts.numpy(), partners(graph)), strict=True):
                falling = np.sort(values[span][values[span] > 0])[::-1]
                axis.loglog(np.arange(1, len(falling) + 1), falling, label=name)
    for axis, title in zip(axes, ("occurrences", "partners"), strict=True):
        axis.set(title=title, xlabel="rank")
        axis.legend()
    with write_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=150, metadata={"Comment": COMMENT})


def smoothed(graph: WordGraph) -> Tensor:
    """float32 (V, d): the word vectors after two layers of graph convolution without weights."""
    adjacency = normalised_adjacency(graph.edges, len(graph.words))
    return torch.sparse.mm(adjacency, torch.sparse.mm(adjacency, graph.vectors))


def _lists(side: str, graph: WordGraph) -> Iterator[WordList]:
    counts = graph.counts if graph.counts is not None else torch.zeros(len(graph.words), dtype=torch.int64)
    spans = slice(graph.num_modifiers), slice(graph.num_modifiers, len(graph.words))
    for part, span in zip(SIDES[side], spans, strict=True):
        frequent = counts[span].argsort(descending=True, stable=True).tolist()
        yield WordList(f"{part}s", span, graph.words[span], frequent)


def _nearest(table: Tensor, i: int, count: int) -> list[int]:
    distance = (table - table[i]).square().sum(1)
    order = distance.argsort(stable=True).tolist()
    order.remove(i)
    return order[:count]


def _spread(table: Tensor) -> float:
    return float((table - table.mean(0)).square().mean().sqrt())
