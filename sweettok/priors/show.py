"""A prior in words: sizes, frequent words, neighbours before and after the graph, and what two priors share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sweettok.priors.graph import Prior, WordGraph, normalised_adjacency

NAMES = {"spatial": ("adjectives", "nouns"), "temporal": ("adverbs", "verbs")}


def describe(prior: Prior, most: int = 10) -> str:
    """A few lines of text: list sizes, vector widths, edges, and the most frequent words."""
    lines = []
    for side, names in NAMES.items():
        graph = getattr(prior, side)
        lines.append(
            f"{side}: {graph.num_modifiers} {names[0]} + {graph.num_heads} {names[1]}, "
            f"vectors of {graph.dim}, {graph.edges.shape[1]} edges"
        )
        if graph.origin:
            lines.append(f"  {graph.origin}")
        for name, _, words, frequent in _lists(side, graph):
            lines.append(f"  {name}: " + ", ".join(words[i] for i in frequent[:most]))
    return "\n".join(lines)


def describe_neighbors(prior: Prior, words: Sequence[str] = (), most: int = 5, nearest: int = 5) -> str:
    """The nearest words, of the same list, to `words` (or the `most` most frequent of each list), by distance.

    Before: in the word vectors. After: in the vectors averaged twice over the graph, as the two layers of the graph
    projection do before their weights come in. "spread" is how much of the differences between words of a list that
    leaves: near 0 the graph makes all words alike.

    Raises ValueError for a word in none of the lists.
    """
    lines, met = [], set()
    for side in NAMES:
        graph = getattr(prior, side)
        after = smoothed(graph)
        for name, start, spoken, frequent in _lists(side, graph):
            before_list, after_list = (table[start : start + len(spoken)] for table in (graph.vectors, after))
            left = _spread(after_list) / max(_spread(before_list), 1e-12)
            lines.append(f"{name}: spread {left:.0%} after the graph")
            for place in [spoken.index(word) for word in words if word in spoken] if words else frequent[:most]:
                met.add(spoken[place])
                near = (", ".join(spoken[i] for i in _nearest(t, place, nearest)) for t in (before_list, after_list))
                lines.append(f"  {spoken[place]}: {' | '.join(near)}")
    if set(words) - met:
        raise ValueError(f"in none of the lists: {', '.join(sorted(set(words) - met))}")
    return "\n".join(["nearest words, before | after the graph", *lines])


def describe_overlap(first: Prior, second: Prior, most: int = 10) -> str:
    """For each list, how many words both priors have, and the most frequent ones that only one has."""
    lines = []
    for side in NAMES:
        graphs = getattr(first, side), getattr(second, side)
        for (name, _, mine, first_order), (_, _, theirs, second_order) in zip(
            *(_lists(side, graph) for graph in graphs), strict=True
        ):
            both = len(set(mine) & set(theirs))
            lines.append(
                f"{name}: {both} in both, {both / len(mine):.1%} of {len(mine)} and {both / len(theirs):.1%} of "
                f"{len(theirs)}"
            )
            for which, words, order, others in (
                ("first", mine, first_order, set(theirs)),
                ("second", theirs, second_order, set(mine)),
            ):
                only = [words[i] for i in order if words[i] not in others][:most]
                lines.append(f"  only in the {which}: {', '.join(only) or '-'}")
        mine, theirs = (_named_pairs(graph) for graph in graphs)
        both = len(mine & theirs)
        lines.append(f"{side} pairs: {both} in both, of {len(mine)} and {len(theirs)}")
    return "\n".join(lines)


def smoothed(graph: WordGraph) -> Tensor:
    """float32 (V, d): the word vectors after two rounds of the normalised adjacency."""
    adjacency = normalised_adjacency(graph.edges, len(graph.words))
    return torch.sparse.mm(adjacency, torch.sparse.mm(adjacency, graph.vectors))


def _lists(side: str, graph: WordGraph) -> Iterator[tuple[str, int, tuple[str, ...], list[int]]]:
    """(name, place of the first word in the vocabulary, words, places from the most frequent word on) of both lists."""
    counts = graph.counts if graph.counts is not None else torch.zeros(len(graph.words), dtype=torch.int64)
    per_list = counts.split([graph.num_modifiers, graph.num_heads])
    for name, start, words, count in zip(
        NAMES[side], (0, graph.num_modifiers), (graph.modifiers, graph.heads), per_list, strict=True
    ):
        yield name, start, words, count.argsort(descending=True, stable=True).tolist()


def _nearest(table: Tensor, place: int, count: int) -> list[int]:
    distance = (table - table[place]).square().sum(1)
    order = distance.argsort(stable=True).tolist()
    order.remove(place)
    return order[:count]


def _spread(table: Tensor) -> float:
    return float((table - table.mean(0)).square().mean().sqrt())


def _named_pairs(graph: WordGraph) -> set[tuple[str, str]]:
    """Different edges, by word. A word of both lists is the same on either side."""
    words = graph.words
    return {tuple(sorted((words[a], words[b]))) for a, b in graph.edges.unique(dim=1).T.tolist()}
