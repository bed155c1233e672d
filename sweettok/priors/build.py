"""Build a prior from captions whose words are tagged by part of speech.

Counts, edges and word vectors all come from the captions alone, so any caption set gives a codebook prior without
downloads. The vectors are positive pointwise mutual information of words sharing a caption, reduced by a truncated
SVD (Levy and Goldberg 2014); the release took its vectors from a language model instead.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
import torch

from sweettok.priors.graph import Prior, WordGraph

PARTS_OF_SPEECH = ("adjective", "noun", "adverb", "verb")
_DENSE_UP_TO = 1000  # words; a full SVD of that size takes a second, and smaller ones cannot be truncated safely
_JITTER = 0.01

Word = tuple[str, str]  # (word, part of speech)


@dataclass(frozen=True)
class TaggedCaption:
    """One caption: the key of its clip, and its (word, part of speech) pairs."""

    key: str
    words: tuple[Word, ...]


def read_tagged(*paths: str | Path) -> Iterator[TaggedCaption]:
    """The captions of JSONL files with lines {"key": ..., "text": ..., "words": [[word, part of speech], ...]}.

    Raises ValueError naming the file and line of anything else.
    """
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield _parse(json.loads(line))
                    except (KeyError, TypeError, ValueError) as error:
                        raise ValueError(f"{path}, line {number}: no tagged caption: {error!r}") from error


def _parse(record: dict) -> TaggedCaption:
    words = []
    for word, part in record["words"]:
        if part not in PARTS_OF_SPEECH:
            raise ValueError(f"{word!r} is tagged {part!r}, expected one of {', '.join(PARTS_OF_SPEECH)}")
        if not isinstance(word, str) or not word.strip():
            raise ValueError(f"{word!r} is not a word")
        words.append((word.strip().lower(), part))
    return TaggedCaption(str(record["key"]), tuple(words))


def build_prior(
    captions: Iterable[TaggedCaption], dim: int = 32, min_count: int = 1, neighbors: int | None = None
) -> Prior:
    """Count, connect and embed the words of `captions`.

    Words counted at least `min_count` times are kept, the most frequent first. As in the release, a noun that is also
    an adjective is dropped, and a word that is both adverb and verb stands in both lists. An adjective and a noun, or
    an adverb and a verb, that share a caption are connected by one edge per caption; with `neighbors`, by a single
    edge, and only if one is among the `neighbors` words that share the other's captions most beyond chance. That keeps
    small vocabularies apart, whose dense graphs would smooth all codes into one. `dim` is the width of the vectors, at
    most the number of words kept.

    Raises ValueError when a word list comes out empty or `dim` does not fit.
    """
    captions = [caption.words for caption in captions]
    counts = Counter(word for words in captions for word in words)
    kept = {word: n for word, n in counts.items() if n >= min_count and not _noun_and_adjective(word, counts)}
    lists = {part: sorted((w for w in kept if w[1] == part), key=lambda w: (-kept[w], w)) for part in PARTS_OF_SPEECH}
    for part, words in lists.items():
        if not words:
            raise ValueError(f"no {part} is counted at least {min_count} times in the {len(captions)} captions")
    words = [word for part in PARTS_OF_SPEECH for word in lists[part]]
    if neighbors is not None and neighbors < 1:
        raise ValueError(f"neighbors must be at least 1, got {neighbors}")
    if not 1 <= dim <= len(words):
        raise ValueError(f"dim must be from 1 to the number of words ({len(words)}), got {dim}")
    captions = [sorted(set(caption) & kept.keys()) for caption in captions]
    vectors = dict(zip(words, word_vectors(captions, words, dim), strict=True))
    return Prior(
        _graph(lists["adjective"], lists["noun"], captions, vectors, kept, neighbors),
        _graph(lists["adverb"], lists["verb"], captions, vectors, kept, neighbors),
    )


def _noun_and_adjective(word: Word, counts: Counter) -> bool:
    return word[1] == "noun" and (word[0], "adjective") in counts


def _graph(
    modifiers: list[Word],
    heads: list[Word],
    captions: list[list[Word]],
    vectors: dict[Word, np.ndarray],
    counts: dict[Word, int],
    neighbors: int | None,
) -> WordGraph:
    first = {word: i for i, word in enumerate(modifiers)}
    second = {word: len(modifiers) + i for i, word in enumerate(heads)}
    edges = [
        pair
        for caption in captions
        for pair in product((first[w] for w in caption if w in first), (second[w] for w in caption if w in second))
    ]
    words = modifiers + heads
    if neighbors is not None:
        edges = _nearest_partners(edges, [counts[word] for word in words], neighbors)
    return WordGraph(
        tuple(word for word, _ in modifiers),
        tuple(word for word, _ in heads),
        torch.from_numpy(np.stack([vectors[word] for word in words])),
        torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T.contiguous(),
        torch.tensor([counts[word] for word in words]),
    )


def _nearest_partners(edges: list[tuple[int, int]], counts: list[int], neighbors: int) -> list[tuple[int, int]]:
    """Each pair once, kept if either word counts the other among its `neighbors` by pointwise mutual information."""
    partners = defaultdict(list)
    for (a, b), together in sorted(Counter(edges).items()):
        association = together / (counts[a] * counts[b])  # orders a word's partners as the logarithm would
        partners[a].append((-association, b, (a, b)))
        partners[b].append((-association, a, (a, b)))
    return sorted({pair for found in partners.values() for _, _, pair in sorted(found)[:neighbors]})


def word_vectors(captions: list[list[Word]], words: list[Word], dim: int) -> np.ndarray:
    """float32 (len(words), dim) of unit root mean square, the same for the same captions.

    `captions` hold distinct words of `words`. A word counts as sharing a caption with itself, which tells rare words
    apart. Words that still come out equal (they only ever occur together), or as zero, are moved apart by a little
    noise drawn from their spelling, because words with equal vectors would be one word to a codebook.
    """
    left, sizes = _truncated_svd(_ppmi(captions, words), dim)
    strongest = left[np.abs(left).argmax(axis=0), np.arange(dim)]
    table = left * np.sign(strongest) * np.sqrt(sizes)  # singular vectors are defined up to their sign
    table /= _root_mean_square(table) or 1
    _, group, members = np.unique(table.round(6), axis=0, return_inverse=True, return_counts=True)
    alike = (members[group.reshape(-1)] > 1) | (np.abs(table).max(axis=1) < 1e-6)
    for i in np.flatnonzero(alike):
        table[i] += _JITTER * np.random.RandomState(zlib.crc32(" ".join(words[i]).encode())).standard_normal(dim)
    return (table / _root_mean_square(table)).astype(np.float32)


def _root_mean_square(table: np.ndarray) -> float:
    return float(np.sqrt((table**2).mean()))


def _ppmi(captions: list[list[Word]], words: list[Word]) -> scipy.sparse.csr_matrix:
    """Positive pointwise mutual information of words sharing a caption, (len(words), len(words))."""
    position = {word: i for i, word in enumerate(words)}
    places = [(row, position[word]) for row, caption in enumerate(captions) for word in caption]
    rows, columns = np.array(places).T
    occurs = scipy.sparse.csr_matrix((np.ones(len(places)), (rows, columns)), shape=(len(captions), len(words)))
    together = (occurs.T @ occurs).tocoo()  # captions that hold both words; on the diagonal, that hold the word
    share = np.asarray(occurs.sum(axis=0)).reshape(-1) / len(captions)
    information = np.log(together.data / len(captions) / (share[together.row] * share[together.col]))
    table = (np.maximum(information, 0), (together.row, together.col))
    return scipy.sparse.csr_matrix(table, shape=together.shape)


def _truncated_svd(matrix: scipy.sparse.csr_matrix, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The `dim` leading left singular vectors and singular values, largest first."""
    total = matrix.shape[0]
    if total <= _DENSE_UP_TO or 2 * dim > total:
        left, sizes, _ = scipy.linalg.svd(matrix.toarray())
        return left[:, :dim], sizes[:dim]
    start = np.random.RandomState(0).standard_normal(total)  # fixed, because the default is drawn anew each time
    left, sizes, _ = scipy.sparse.linalg.svds(matrix, k=dim, v0=start)
    order = np.argsort(-sizes)
    return left[:, order], sizes[order]
