"""Build a prior from captions whose words are tagged by part of speech."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from sweettok.priors.captions import PARTS_OF_SPEECH, Word
from sweettok.priors.chunks import Chunk, pack
from sweettok.priors.cooccurrence import Counts, count_words, shared_captions
from sweettok.priors.graph import SIDES, Prior, WordGraph
from sweettok.priors.vectors import VectorSource, root_mean_square, word_vectors


@dataclass(frozen=True)
class Rules:
    """Which words and edges of the captions are kept.

    Args:
        min_count: fewest occurrences of a word, by part of speech; 1 for a part that is not given.
        most: largest number of words, by part of speech; no limit for a part that is not given.
        neighbors: connect a word to this many of its closest partners by single edges; None for an edge per caption.
        min_shared: fewest captions with both words for an edge.
        max_weight: largest number of edges between two words.
        drop_unknown: leave out words without a vector, instead of raising an error.
    """

    min_count: Mapping[str, int]
    most: Mapping[str, int]
    neighbors: int | None = None
    min_shared: int = 1
    max_weight: int | None = None
    drop_unknown: bool = False

    def __post_init__(self) -> None:
        for name in ("neighbors", "min_shared", "max_weight"):
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


@dataclass(frozen=True, eq=False)
class Built:
    """A prior, and facts of how it was built."""

    prior: Prior
    counts: Counts  # of all words
    unknown: tuple[str, ...]  # words that were left out because they have no vector
    scale: float  # factor by which the vectors of the source were multiplied


def build_prior(
    captions: Iterable[Sequence[Word]], dim: int = 32, min_count: int = 1, neighbors: int | None = None
) -> Prior:
    """`build` for captions in memory, each a sequence of (word, part of speech), with vectors from the captions."""
    rules = Rules(dict.fromkeys(PARTS_OF_SPEECH, min_count), {}, neighbors)
    return build([pack(captions)], rules, dim).prior


def build(chunks: Iterable[Chunk], rules: Rules, vectors: int | VectorSource, tagging: str = "") -> Built:
    """Build the prior of the captions in `chunks`, which is iterated over twice.

    Words are listed by falling frequency. As in the release, nouns that also occur as adjectives are dropped, and words
    that are both adverb and verb are in both lists. There is one edge for each caption that contains both an adjective
    and a noun, or both an adverb and a verb. With `rules.neighbors` there is at most one edge between two words, and
    only if one is among the closest partners of the other by pointwise mutual information: in the dense graphs of small
    vocabularies, graph convolution would make all codes nearly equal.

    Args:
        vectors: width of vectors computed from the captions (see `word_vectors`), or a source of vectors, which are
            multiplied by one factor to unit root mean square. The release used a language model, the paper CLIP.
        tagging: how parts of speech were found; it becomes part of the graphs' `origin`.

    Raises ValueError for an empty word list, a width above the number of words, or words without a vector.
    """
    counts = count_words(chunks)
    lists, unknown = _word_lists(counts, rules), ()
    if not isinstance(vectors, int):
        lists, found, unknown = _look_up(vectors, lists, rules.drop_unknown)
    words = list(chain.from_iterable(lists.values()))
    shared = shared_captions(chunks, words)
    if isinstance(vectors, int):
        table, scale, origin = word_vectors(shared, counts.captions, words, vectors), 1.0, tagging
    else:
        table = np.stack([found[word] for word, _ in words])
        scale = 1 / (root_mean_square(table.astype(np.float64)) or 1)
        table = (table * np.float64(scale)).astype(np.float32)
        origin = "; ".join(filter(None, (tagging, f"vectors: {vectors.name}")))
    graphs, start = {}, 0
    for side, parts in SIDES.items():
        modifiers, heads = (lists[part] for part in parts)
        middle, end = start + len(modifiers), start + len(modifiers) + len(heads)
        numbers = torch.tensor([counts.words[word] for word in modifiers + heads])
        graphs[side] = WordGraph(
            tuple(word for word, _ in modifiers),
            tuple(word for word, _ in heads),
            vectors=torch.from_numpy(np.ascontiguousarray(table[start:end])),
            edges=_edges(shared[start:middle, middle:end], numbers.numpy(), rules),
            counts=numbers,
            origin=origin,
        )
        start = end
    return Built(Prior(**graphs), counts, unknown, scale)


def _word_lists(counts: Counts, rules: Rules) -> dict[str, list[Word]]:
    lists: dict[str, list[Word]] = {part: [] for part in PARTS_OF_SPEECH}
    for word, count in counts.words.items():
        also_adjective = word[1] == "noun" and (word[0], "adjective") in counts.words
        if count >= rules.min_count.get(word[1], 1) and not also_adjective:
            lists[word[1]].append(word)
    for part, words in lists.items():
        words.sort(key=lambda word: (-counts.words[word], word))
        del words[rules.most.get(part, len(words)) :]
        if not words:
            least = rules.min_count.get(part, 1)
            raise ValueError(f"no {part} is counted at least {least} times in the {counts.captions} captions")
    return lists


def _look_up(
    source: VectorSource, lists: dict[str, list[Word]], drop_unknown: bool
) -> tuple[dict[str, list[Word]], Mapping[str, np.ndarray], tuple[str, ...]]:
    """The lists without unknown words, the vectors by word, and the unknown words."""
    words = list(dict.fromkeys(word for word, _ in chain.from_iterable(lists.values())))
    found = source.vectors(words)
    unknown = tuple(word for word in words if word not in found)
    if unknown and not drop_unknown:
        names = ", ".join(unknown[:10]) + (", ..." if len(unknown) > 10 else "")
        number = f"{len(unknown)} of {len(words)} words"
        raise ValueError(f"{source.name} has no vector for {number} ({names}): --drop-unknown leaves them out")
    lists = {part: [word for word in words if word[0] in found] for part, words in lists.items()}
    for part, words in lists.items():
        if not words:
            raise ValueError(f"{source.name} has no vector for any {part}")
    return lists, found, unknown


def _edges(shared: scipy.sparse.csr_matrix, counts: np.ndarray, rules: Rules) -> Tensor:
    """int64 (2, E), sorted, from the number of captions that contain a modifier (row) and a head (column)."""
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
    """Mask of the pairs in which one word is among the `neighbors` partners of the other with the highest association.

    Among equal ones, the word that is listed first counts.
    """
    near = np.zeros(len(first), dtype=bool)
    for word, partner in ((first, second), (second, first)):
        order = np.lexsort((partner, -association, word))
        starts = np.flatnonzero(np.diff(word[order], prepend=-1))
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
        near[order[rank < neighbors]] = True
    return near
