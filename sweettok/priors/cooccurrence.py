"""Count the occurrences of words in captions, and the captions that contain two words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from sweettok.priors.captions import Word
from sweettok.priors.chunks import Chunk

_BATCH = 4_000_000  # words of a matrix, which bounds memory


@dataclass(frozen=True, eq=False)
class Counts:
    """Number of captions, and occurrences of each word."""

    captions: int
    words: dict[Word, int]


def count_words(chunks: Iterable[Chunk]) -> Counts:
    """Count the words of all chunks."""
    words: Counter[Word] = Counter()
    captions = 0
    for chunk in chunks:
        captions += len(chunk.lengths)
        words.update(dict(zip(chunk.words, np.bincount(chunk.ids, minlength=len(chunk.words)).tolist(), strict=True)))
    return Counts(captions, dict(words))


def shared_captions(chunks: Iterable[Chunk], words: Sequence[Word]) -> scipy.sparse.csr_matrix:
    """int32 (len(words), len(words)), number of captions that contain both words, however often."""
    index = {word: i for i, word in enumerate(words)}
    total = sum(occurs.T.tocsr() @ occurs for occurs in _occurrences(chunks, index))
    total.sort_indices()
    return total


def _occurrences(chunks: Iterable[Chunk], index: Mapping[Word, int]) -> Iterator[scipy.sparse.csr_matrix]:
    """int32 (captions, words) of ones and zeros, in matrices of about _BATCH entries."""
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
