"""Counting the words of captions and the captions that words share, chunk by chunk in bounded memory."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sweettok.priors.captions import PARTS_OF_SPEECH, Word, clean_word

_BATCH = 4_000_000  # words that are multiplied at a time


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some captions, packed.

    words: the distinct words. ids: int32 (N,), the words of one caption after the other, as places in `words`.
    lengths: int32 (captions,), words of each caption.
    """

    words: tuple[Word, ...]
    ids: np.ndarray
    lengths: np.ndarray


def pack(captions: Iterable[Sequence[Sequence[str]]]) -> Chunk:
    """Captions, each a sequence of (word, part of speech), as one chunk; words are cleaned. ValueError: clean_word."""
    places: dict[Word, int] = {}
    met: dict[tuple[str, str], int] = {}  # as spelt in the captions, so that each spelling is cleaned once
    ids, lengths = [], []
    for caption in captions:
        for pair in map(tuple, caption):
            place = met.get(pair)
            if place is None:
                place = met[pair] = places.setdefault(clean_word(*pair), len(places))
            ids.append(place)
        lengths.append(len(caption))
    return Chunk(tuple(places), np.array(ids, dtype=np.int32), np.array(lengths, dtype=np.int32))


def save_chunk(chunk: Chunk, path: Path) -> None:
    """Written aside and renamed."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_bytes(save({"ids": chunk.ids, "lengths": chunk.lengths}, {"words": json.dumps(chunk.words)}))
    os.replace(aside, path)


def load_chunk(path: Path) -> Chunk:
    try:
        with safe_open(path, framework="np") as file:
            words = tuple((word, part) for word, part in json.loads(file.metadata()["words"]))
            return Chunk(words, file.get_tensor("ids"), file.get_tensor("lengths"))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a chunk of captions, remove it: {error}") from error


@dataclass(frozen=True, eq=False)
class Counts:
    """What pass one finds.

    captions: how many. occurrences: of all words, by part of speech. words: how often each word occurs, exact for
    every word that may be kept. distinct: number of different words by part; None when rare ones were let go.
    """

    captions: int
    occurrences: dict[str, int]
    words: dict[Word, int]
    distinct: dict[str, int] | None


def count_words(chunks: Iterable[Chunk], min_count: Mapping[str, int], bound: int) -> Counts:
    """Count words in a table that holds about `bound` at most; `chunks` can be gone through more than once.

    When the table is fuller after a chunk, its rarest words are dropped, at least half of it. What a word can lose
    so is at most the sum of the largest counts dropped each time. While that sum is below every `min_count`, no word
    to be kept is missed, and a second look at the chunks makes the counts of all candidates exact. Otherwise
    ValueError: the result is exact or refused.
    """
    words: Counter[Word] = Counter()
    occurrences = Counter(dict.fromkeys(PARTS_OF_SPEECH, 0))
    captions = lost = 0
    for chunk in chunks:
        captions += len(chunk.lengths)
        for word, count in _occurring(chunk):
            words[word] += count
            occurrences[word[1]] += count
        if len(words) > bound:
            limit = int(np.partition(np.fromiter(words.values(), np.int64), len(words) // 2)[len(words) // 2])
            words = Counter({word: count for word, count in words.items() if count > limit})
            lost += limit
    if lost >= min(min_count.values()):
        raise ValueError(
            f"the captions hold far more than {bound:,} different words, and words counted up to {lost} times may have "
            f"been lost: raise --min-count to {lost + 1} or more, or --word-bound"
        )
    distinct = None if lost else {part: sum(word[1] == part for word in words) for part in PARTS_OF_SPEECH}
    if lost:
        words = _recount(chunks, {word for word, count in words.items() if count + lost >= min_count[word[1]]})
    return Counts(captions, dict(occurrences), dict(words), distinct)


def _occurring(chunk: Chunk) -> Iterator[tuple[Word, int]]:
    return zip(chunk.words, np.bincount(chunk.ids, minlength=len(chunk.words)).tolist(), strict=True)


def _recount(chunks: Iterable[Chunk], candidates: set[Word]) -> Counter[Word]:
    # With the adjectives that are spelt as nouns: however rare, they decide whether the noun stays.
    wanted = candidates | {(word, "adjective") for word, part in candidates if part == "noun"}
    words: Counter[Word] = Counter()
    for chunk in chunks:
        words.update({word: count for word, count in _occurring(chunk) if word in wanted})
    return words


def captions_shared(
    chunks: Iterable[Chunk], words: Sequence[Word], blocks: Sequence[tuple[slice, slice]]
) -> list[scipy.sparse.csr_matrix]:
    """For each block (slices a, b of `words`): int32 (len(a), len(b)), captions that hold both words.

    A caption counts once however often it repeats a word; each word shares with itself the captions that hold it.
    """
    place = {word: i for i, word in enumerate(words)}
    totals = [
        scipy.sparse.csr_matrix((len(range(len(words))[a]), len(range(len(words))[b])), dtype=np.int32)
        for a, b in blocks
    ]
    for occurs in _occurrence_matrices(chunks, place):
        totals = [total + occurs[:, a].T.tocsr() @ occurs[:, b] for total, (a, b) in zip(totals, blocks, strict=True)]
    for total in totals:
        total.sort_indices()
    return totals


def _occurrence_matrices(chunks: Iterable[Chunk], place: Mapping[Word, int]) -> Iterator[scipy.sparse.csr_matrix]:
    """int32 (captions, words) of ones and zeros, many chunks at a time."""
    columns, lengths, gathered = [], [], 0
    for chunk in chunks:
        known = np.array([place.get(word, -1) for word in chunk.words] + [-1], dtype=np.int32)[chunk.ids]
        owner = np.repeat(np.arange(len(chunk.lengths)), chunk.lengths)[known >= 0]
        columns.append(known[known >= 0])
        lengths.append(np.bincount(owner, minlength=len(chunk.lengths)))
        gathered += len(columns[-1])
        if gathered >= _BATCH:
            yield _occurrence_matrix(columns, lengths, len(place))
            columns, lengths, gathered = [], [], 0
    if columns:
        yield _occurrence_matrix(columns, lengths, len(place))


def _occurrence_matrix(columns: list[np.ndarray], lengths: list[np.ndarray], width: int) -> scipy.sparse.csr_matrix:
    starts = np.concatenate(([0], np.cumsum(np.concatenate(lengths))))
    places = np.concatenate(columns)
    matrix = scipy.sparse.csr_matrix((np.ones(len(places), np.int32), places, starts), (len(starts) - 1, width))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix
