"""How often words occur in captions, and in how many captions two words occur together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from sweettok.priors.captions import PARTS_OF_SPEECH, Word
from sweettok.priors.chunks import Chunk

_BATCH = 4_000_000  # words that are multiplied at a time


@dataclass(frozen=True, eq=False)
class Counts:
    """Number of captions, occurrences of each word, and occurrences of all words by part of speech."""

    captions: int
    words: dict[Word, int]
    occurrences: dict[str, int]


def count_words(chunks: Iterable[Chunk]) -> Counts:
    """Count the words of all chunks."""
    words: Counter[Word] = Counter()
    captions = 0
    for chunk in chunks:
        captions += len(chunk.lengths)
        words.update(dict(zip(chunk.words, np.bincount(chunk.ids, minlength=len(chunk.words)).tolist(), strict=True)))
    occurrences = dict.fromkeys(PARTS_OF_SPEECH, 0)
    for (_, part), count in words.items():
        occurrences[part] += count
    return Counts(captions, dict(words), occurrences)


def shared_captions(chunks: Iterable[Chunk], words: Sequence[Word]) -> scipy.sparse.csr_matrix:
    """int32 (len(words), len(words)), number of captions that hold both words.

    A caption counts once, however often it repeats a word; a word shares with itself the captions that hold it.
    """
    index = {word: i for i, word in enumerate(words)}
    total = sum(occurs.T.tocsr() @ occurs for occurs in _occurrences(chunks, index))
    total.sort_indices()
    return total


def _occurrences(chunks: Iterable[Chunk], index: Mapping[Word, int]) -> Iterator[scipy.sparse.csr_matrix]:
    """int32 (captions, words) of ones and zeros, for about _BATCH words at a time; at least one matrix."""
    columns, lengths, gathered = [np.empty(0, np.int32)], [np.empty(0, np.int64)], 0
    for chunk in chunks:
        known = np.array([index.get(word, -1) for word in chunk.words] + [-1], dtype=np.int32)[chunk.ids]
        caption = np.repeat(np.arange(len(chunk.lengths)), chunk.lengths)[known >= 0]
        columns.append(known[known >= 0])
        lengths.append(np.bincount(caption, minlength=len(chunk.lengths)))
        gathered += len(columns[-1])
        if gathered >= _BATCH:
            yield _occurrence_matrix(columns, lengths, len(index))
            columns, lengths, gathered = columns[:1], lengths[:1], 0
    yield _occurrence_matrix(columns, lengths, len(index))


def _occurrence_matrix(columns: list[np.ndarray], lengths: list[np.ndarray], width: int) -> scipy.sparse.csr_matrix:
    starts = np.concatenate(([0], np.cumsum(np.concatenate(lengths))))
    indices = np.concatenate(columns)
    matrix = scipy.sparse.csr_matrix((np.ones(len(indices), np.int32), indices, starts), (len(starts) - 1, width))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix
