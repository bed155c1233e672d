"""Build a prior from captions whose words are tagged by part of speech.

By default counts, edges and word vectors all come from the captions alone, so any caption set gives a codebook prior
without downloads. The vectors are then positive pointwise mutual information of words sharing a caption, reduced by a
truncated SVD (Levy and Goldberg 2014); the release took its vectors from a language model instead, the paper from CLIP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from sweettok.priors.captions import PARTS_OF_SPEECH, TaggedCaption, Word, read_tagged
from sweettok.priors.counting import Chunk, Counts, captions_shared, count_words, pack
from sweettok.priors.graph import Prior, WordGraph
from sweettok.priors.vectors import VectorSource, root_mean_square, word_vectors

__all__ = ["Built", "Rules", "TaggedCaption", "build", "build_prior", "read_tagged"]

SIDES = {"spatial": ("adjective", "noun"), "temporal": ("adverb", "verb")}


@dataclass(frozen=True)
class Rules:
    """What is kept of the captions.

    min_count: occurrences that a word needs, by part of speech. most: longest word lists, by part of speech.
    neighbors: connect a word to that many of its closest partners, by a single edge; None for an edge per caption.
    min_shared: captions that two words must share to be connected. max_weight: edges between two words, at most.
    drop_unknown: leave words out that the source of vectors does not know. word_bound: words counted at a time.
    """

    min_count: Mapping[str, int]
    most: Mapping[str, int]
    neighbors: int | None = None
    min_shared: int = 1
    max_weight: int | None = None
    drop_unknown: bool = False
    word_bound: int = 1_000_000

    def __post_init__(self) -> None:
        for name in ("neighbors", "min_shared", "max_weight", "word_bound"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("min_count", "most"):
            for part, value in getattr(self, name).items():
                if part not in PARTS_OF_SPEECH or value < 1:
                    parts = ", ".join(PARTS_OF_SPEECH)
                    raise ValueError(f"{name} takes numbers from 1 for {parts}; got {part}={value}")
        if self.neighbors is not None and self.max_weight is not None:
            raise ValueError("neighbors gives single edges: max_weight would have no effect")

    def least(self) -> dict[str, int]:
        """min_count of every part of speech."""
        return {part: self.min_count.get(part, 1) for part in PARTS_OF_SPEECH}


@dataclass(frozen=True, eq=False)
class Built:
    """A prior with what was found on the way: all counts, words left out for want of a vector, and the one factor
    that all vectors of their source were multiplied by."""

    prior: Prior
    counts: Counts
    unknown: tuple[str, ...]
    scale: float


def build_prior(
    captions: Iterable[TaggedCaption], dim: int = 32, min_count: int = 1, neighbors: int | None = None
) -> Prior:
    """`build` for captions in memory, with vectors from the captions."""
    rules = Rules(dict.fromkeys(PARTS_OF_SPEECH, min_count), {}, neighbors)
    return build([pack(caption.words for caption in captions)], rules, dim).prior


def build(chunks: Iterable[Chunk], rules: Rules, vectors: int | VectorSource, tagging: str = "") -> Built:
    """Count, connect and embed the words of `chunks`, which can be gone through more than once.

    The most frequent words come first. As in the release, a noun that is also an adjective, however rare, is dropped,
    and a word that is both adverb and verb stands in both lists. An adjective and a noun, or an adverb and a verb,
    that share a caption are connected by one edge per caption; with `neighbors`, by a single edge, and only if one is
    among the `neighbors` words that share the other's captions most beyond chance. That keeps small vocabularies
    apart, whose dense graphs would smooth all codes into one.

    `vectors` is the width of vectors made from the captions, at most the number of words kept, or their source; those
    of a source are multiplied by one factor, so that they have unit root mean square. `tagging` says who found the
    parts of speech; it becomes part of the graphs' `origin`.

    Raises ValueError when a word list comes out empty, the width does not fit, or the source lacks words.
    """
    counts = count_words(chunks, rules.least(), rules.word_bound)
    lists, unknown = _word_lists(counts, rules), ()
    if isinstance(vectors, int):
        total = sum(map(len, lists.values()))
        if not 1 <= vectors <= total:
            raise ValueError(f"dim must be from 1 to the number of words ({total}), got {vectors}")
        table, shared, scale = *_from_captions(chunks, counts, lists, vectors), 1.0
        origin = tagging
    else:
        lists, found, unknown = _look_up(vectors, lists, rules.drop_unknown)
        words = _vocabulary(lists)
        shared = dict(zip(SIDES, captions_shared(chunks, words, list(_blocks(lists).values())), strict=True))
        table, scale = _scaled(np.stack([found[word] for word, _ in words]))
        origin = "; ".join(filter(None, (tagging, f"vectors: {vectors.name}")))
    graphs = {}
    for side, (rows, columns) in _blocks(lists).items():
        both, own = [lists[part] for part in SIDES[side]], table[rows.start : columns.stop]
        graphs[side] = _graph(both, own, shared[side], counts, rules, origin)
    return Built(Prior(**graphs), counts, unknown, scale)


def _from_captions(
    chunks: Iterable[Chunk], counts: Counts, lists: dict[str, list[Word]], dim: int
) -> tuple[np.ndarray, dict[str, scipy.sparse.csr_matrix]]:
    """Vectors of all words, and the captions that modifiers and heads share."""
    words = _vocabulary(lists)
    (together,) = captions_shared(chunks, words, [(slice(None), slice(None))])
    shared = {side: together[rows, columns] for side, (rows, columns) in _blocks(lists).items()}
    return word_vectors(together, counts.captions, words, dim), shared


def _scaled(table: np.ndarray) -> tuple[np.ndarray, float]:
    """float32 of unit root mean square, and the factor."""
    scale = 1 / (root_mean_square(table.astype(np.float64)) or 1)
    return (table * np.float64(scale)).astype(np.float32), scale


def _word_lists(counts: Counts, rules: Rules) -> dict[str, list[Word]]:
    least = rules.least()
    lists: dict[str, list[Word]] = {part: [] for part in PARTS_OF_SPEECH}
    for word, count in counts.words.items():
        if count >= least[word[1]] and not (word[1] == "noun" and (word[0], "adjective") in counts.words):
            lists[word[1]].append(word)
    for part, words in lists.items():
        words.sort(key=lambda word: (-counts.words[word], word))
        del words[rules.most.get(part, len(words)) :]
    for part, words in lists.items():
        if not words:
            raise ValueError(f"no {part} is counted at least {least[part]} times in the {counts.captions} captions")
    return lists


def _look_up(
    source: VectorSource, lists: dict[str, list[Word]], drop_unknown: bool
) -> tuple[dict[str, list[Word]], Mapping[str, np.ndarray], tuple[str, ...]]:
    """The lists of words that have a vector, the vectors by word, and the words without one."""
    words = list(dict.fromkeys(word for word, _ in _vocabulary(lists)))
    found = source.vectors(words)
    unknown = tuple(word for word in words if word not in found)
    if unknown and not drop_unknown:
        raise ValueError(
            f"{source.name} has no vector for {len(unknown)} of {len(words)} words ({', '.join(unknown[:10])}"
            f"{', ...' if len(unknown) > 10 else ''}): --drop-unknown leaves them out"
        )
    lists = {part: [word for word in words if word[0] in found] for part, words in lists.items()}
    for part, words in lists.items():
        if not words:
            raise ValueError(f"there is no {part} of which {source.name} has a vector")
    return lists, found, unknown


def _vocabulary(lists: dict[str, list[Word]]) -> list[Word]:
    return [word for part in PARTS_OF_SPEECH for word in lists[part]]


def _blocks(lists: dict[str, list[Word]]) -> dict[str, tuple[slice, slice]]:
    """Where modifiers and heads of each graph stand in the vocabulary."""
    ends = np.cumsum([len(lists[part]) for part in PARTS_OF_SPEECH]).tolist()
    spans = {part: slice(end - len(lists[part]), end) for part, end in zip(PARTS_OF_SPEECH, ends, strict=True)}
    return {side: (spans[modifiers], spans[heads]) for side, (modifiers, heads) in SIDES.items()}


def _graph(
    lists: list[list[Word]],
    table: np.ndarray,
    shared: scipy.sparse.csr_matrix,
    counts: Counts,
    rules: Rules,
    origin: str,
) -> WordGraph:
    modifiers, heads = lists
    numbers = torch.tensor([counts.words[word] for word in modifiers + heads])
    return WordGraph(
        tuple(word for word, _ in modifiers),
        tuple(word for word, _ in heads),
        torch.from_numpy(np.ascontiguousarray(table)),
        _edges(shared, numbers.numpy(), rules),
        numbers,
        origin,
    )


def _edges(shared: scipy.sparse.csr_matrix, counts: np.ndarray, rules: Rules) -> Tensor:
    """int64 (2, E) from the captions that modifiers (rows) and heads (columns) share, in order of the two words."""
    pairs = shared.tocoo()
    first, second, weights = (array.astype(np.int64) for array in (pairs.row, pairs.col, pairs.data))
    second += shared.shape[0]
    enough = weights >= rules.min_shared
    first, second, weights = first[enough], second[enough], weights[enough]
    if rules.neighbors is not None:
        near = _nearest_partners(first, second, weights / (counts[first] * counts[second]), rules.neighbors)
        first, second, weights = first[near], second[near], np.ones(near.sum(), np.int64)
    elif rules.max_weight is not None:
        weights = np.minimum(weights, rules.max_weight)
    return torch.from_numpy(np.stack((first.repeat(weights), second.repeat(weights))))


def _nearest_partners(first: np.ndarray, second: np.ndarray, association: np.ndarray, neighbors: int) -> np.ndarray:
    """Mask of the pairs of which either word has the other among its `neighbors` by pointwise mutual information.

    `association` orders the partners of a word as that would; a tie goes to the word that is listed first.
    """
    near = np.zeros(len(first), dtype=bool)
    for word, partner in ((first, second), (second, first)):
        order = np.lexsort((partner, -association, word))
        starts = np.flatnonzero(np.diff(word[order], prepend=-1))
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
        near[order[rank < neighbors]] = True
    return near
