"""Words of the captions of training clips: targets of the caption loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sweettok.priors.captions import Word, clean_word, kind_of, read_records
from sweettok.tokenizer.base import SweetTokBase
from sweettok.tokenizer.layout import KINDS


class CaptionWords:
    """Which words of a tokenizer's lists the captions of clips contain.

    Args:
        path: JSON lines {"key": ..., "words": [[word, part of speech], ...]}, as `sweettok data synthetic` writes them.
            The key is the clip's path in its list, without suffix.
        keys: of the training clips.

    Attributes:
        missing: number of these clips whose caption has no word of the lists, or that have no caption.

    Raises ValueError for another kind of file, and if all clips are missing.
    """

    def __init__(self, path: str, tokenizer: SweetTokBase, keys: Sequence[str]):
        places: dict[Word, list[int]] = {}
        self.size = 0  # V, words of all lists
        for segment, words in zip(tokenizer.layout.segments, tokenizer.vocabulary, strict=True):
            # With lookup union a list has words of two parts of speech, which are not told apart.
            for part in (segment.name,) if segment.name in KINDS else KINDS:
                for number, word in enumerate(words, self.size):
                    places.setdefault((word, part), []).append(number)
            self.size += len(words)
        wanted = set(keys)
        self.words = {
            key: sorted({number for word in words for number in places.get(word, ())})
            for key, words in tagged_captions(path)
            if key in wanted
        }
        self.missing = sum(not self.words.get(key) for key in keys)
        if self.missing == len(keys):
            raise ValueError(
                f"{path}: no training clip has a caption with words of the prior; keys must be as {keys[0]!r}"
            )

    def targets(self, keys: Sequence[str]) -> Tensor:
        """(B, V) float32, V words of all lists in order: 1 for the words of each clip's caption."""
        targets = torch.zeros(len(keys), self.size)
        for row, key in zip(targets, keys, strict=True):
            row[self.words.get(key, [])] = 1
        return targets


def tagged_captions(path: str) -> Iterator[tuple[str, list[Word]]]:
    """(key, words) of each record of a file of tagged captions. ValueError names the line that is none."""
    if kind_of(path, "words") != "tagged":
        raise ValueError(f'{path} is not a file of tagged captions: JSON lines with "key" and "words" are expected')
    for number, record in read_records(path):
        try:
            yield record["key"], [clean_word(word, part) for word, part in record["words"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: not a tagged caption with a key: {error!r}") from error
