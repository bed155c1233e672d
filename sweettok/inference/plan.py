"""Which samples a generator draws: their names, classes and given frames. Letters: B clips, L ids per clip."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sweettok.data.tokens import TokenDataset
from sweettok.generator.model import Generator

UNSAFE = re.compile(r"[^\w.-]")  # in file names


@dataclass(frozen=True)
class Samples:
    """Samples to draw: their names, and either their classes, the rows of `given` that they continue, or neither."""

    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    given: TokenDataset | None = None

    def __len__(self) -> int:
        return len(self.names)

    def given_ids(self, rows: Sequence[int]) -> Tensor | None:
        """(B, L) ids of the clips of given frames."""
        return None if self.given is None else torch.stack([self.given[row]["given"] for row in rows])

    def condition(self, rows: Sequence[int]) -> dict[str, Any]:
        """The condition of these samples, as arguments of `Generator.sample`."""
        if self.labels is not None:
            return {"labels": [self.labels[row] for row in rows]}
        return {"num_samples": len(rows)} if self.given is None else {"given": self.given_ids(rows)}


def plan(
    generator: Generator,
    *,
    num: int | None = None,
    per_class: int | None = None,
    classes: Sequence[str] | None = None,
    given: str | Path | None = None,
) -> Samples:
    """Names and conditions of samples; sample i is of class classes[i % number of classes].

    Args:
        num: number of samples; by default one for each row of `given`.
        per_class: instead, number of samples of each class.
        classes: names or numbers, from 0; by default all.
        given: for frame prediction, a folder of token shards with given frames; sample i continues its row i.

    Raises ValueError for arguments that do not fit the generator.
    """
    if (given is not None) != generator.sequence.given_clip:
        verb = "continues" if given is None else "does not continue"
        raise ValueError(f"this generator {verb} given frames: `given` is for those that do")
    if not generator.config.num_classes:
        if classes is not None or per_class is not None:
            raise ValueError("this generator has no classes: leave classes and per_class out")
        clips = None if given is None else given_clips(given, generator, num)
        count = check_count(len(clips) if num is None and clips is not None else num)
        return Samples(tuple(f"sample_{i:06}" for i in range(count)), given=clips)
    chosen = range(generator.config.num_classes) if classes is None else find_classes(classes, generator)
    count = check_count(num if per_class is None else per_class * len(chosen))
    labels = tuple(chosen[i % len(chosen)] for i in range(count))
    shown = [class_name(generator.class_names, label) for label in labels]
    return Samples(tuple(f"{UNSAFE.sub('_', name)}_{i:06}" for i, name in enumerate(shown)), labels)


def check_count(number: int | None) -> int:
    if number is None or number < 1:
        raise ValueError(f"how many samples? give num of at least 1, or per_class with classes; got {number}")
    return number


def class_name(names: tuple[str, ...] | None, label: int) -> str:
    return names[label] if names is not None else f"class{label}"


def find_classes(wanted: Sequence[str], generator: Generator) -> list[int]:
    """Class numbers from names or numbers; ValueError for an unknown class, listing the known ones."""
    names, count = generator.class_names or (), generator.config.num_classes
    chosen = [int(name) if name.isdecimal() and name not in names else name for name in wanted]
    if any(isinstance(label, int) and label >= count for label in chosen):
        known = f" ({', '.join(names)})" if names else ""
        raise ValueError(f"classes are numbered 0..{count - 1}{known}; got {' '.join(wanted)}")
    return generator.classes(chosen).tolist()


def given_clips(folder: str | Path, generator: Generator, num: int | None) -> TokenDataset:
    """The shards to continue; ValueError if they are of another tokenizer or number of frames, or too few."""
    given, frames = TokenDataset(folder), generator.config.given_frames
    given.check_tokenizer(generator.config.tokenizer_hash)
    if given.given_frames != frames:
        raise ValueError(
            f"the generator continues {frames} given frames, but {folder} has {given.given_frames}: "
            f"write it with sweettok tokenize --given-frames {frames}"
        )
    if num is not None and num > len(given):
        raise ValueError(f"num {num} is more than the {len(given)} rows of {folder}")
    return given
