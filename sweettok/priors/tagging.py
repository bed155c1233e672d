"""Find the parts of speech of plain captions with spaCy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sweettok.priors.captions import Word

# Universal tags. Proper nouns and auxiliaries ("is", "has") are dropped.
PARTS = {"ADJ": "adjective", "NOUN": "noun", "ADV": "adverb", "VERB": "verb"}
_CAPTIONS_AT_ONCE = 256


@dataclass(frozen=True)
class SpacyTagger:
    """A spaCy pipeline; only tokens of letters alone are kept.

    Args:
        model: an installed pipeline, or the folder of one.
        lemmatize: use dictionary forms instead of the words as written.

    Raises ValueError at first use if spaCy or the pipeline is not installed, or the pipeline has no tagger.
    """

    model: str = "en_core_web_sm"
    lemmatize: bool = False

    @property
    def name(self) -> str:
        """The pipeline, its version and the settings."""
        meta = _pipeline(self.model, self.lemmatize).meta
        forms = "lemmas" if self.lemmatize else "words as written"
        return f"spaCy {Path(self.model).name} {meta['version']}, {forms}"

    def tag(self, texts: Sequence[str]) -> Iterator[list[Word]]:
        """The (word, part of speech) pairs of each caption."""
        pipeline = _pipeline(self.model, self.lemmatize)
        tagged = tokens = 0
        with pipeline.memory_zone():  # frees the words of these captions afterwards
            for document in pipeline.pipe(texts, batch_size=_CAPTIONS_AT_ONCE):
                words = []
                for token in document:
                    tagged, tokens = tagged + bool(token.pos_), tokens + 1
                    if token.pos_ in PARTS and token.is_alpha:
                        words.append((token.lemma_ if self.lemmatize else token.text, PARTS[token.pos_]))
                yield words
        if tokens and not tagged:
            raise ValueError(f"the spaCy pipeline {self.model} assigns no parts of speech: choose one with a tagger")


@cache
def _pipeline(model: str, lemmatize: bool) -> Any:
    try:
        import spacy
    except ImportError as error:
        raise ValueError(
            'plain captions are tagged by spaCy, which is not installed: pip install "sweettok[tagging]" (in a clone: '
            f'pip install -e ".[tagging]"), then python -m spacy download {model}. It is not needed for captions that '
            'are tagged already: JSON lines {"words": [[word, part of speech], ...]}'
        ) from error
    # The parser stays, because it helps to distinguish English auxiliaries from verbs.
    exclude = ["ner"] if lemmatize else ["ner", "lemmatizer"]
    try:
        return spacy.load(model, exclude=exclude)
    except OSError as error:
        raise ValueError(f"no spaCy pipeline {model!r}: python -m spacy download {model} ({error})") from error
