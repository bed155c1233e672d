"""Layout of a generator's sequences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from sweettok.tokenizer.layout import TokenLayout

# Separators before each segment; names are the release's: s/t spatial or temporal half, m its middle, s start, n end.
_SEPARATORS = {
    "union": (("ss",), ("sn", "ts")),
    "modifiers_and_head": (("ss",), ("smn", "sms"), ("sn", "ts"), ("tms", "tmn")),
}
# Start token and separators in the order of their ids.
_SPECIALS = {"union": ("sos", "ss", "sn", "ts", "tn")}
_SPECIALS["modifiers_and_head"] = (*_SPECIALS["union"], "sms", "smn", "tms", "tmn")


class Run(NamedTuple):
    """Consecutive positions of the target with the same allowed ids, [first, stop)."""

    name: str  # of the segment or the separator
    length: int
    first: int
    stop: int


@dataclass(frozen=True)
class SequenceLayout:
    """A prompt, then the target: the ids of a clip with separators between its segments.

    prompt    start token | start token, class | start token, target of the given clip
    target    ss, adjectives, smn, sms, nouns, sn, ts, adverbs, tms, tmn, verbs, tn   (union: ss, spatial, sn, ts,
              temporal, tn)
    input     prompt, then the target without its last id
    output    of the model, from the prompt's last position on: logits for each position of the target

    Vocabulary, in this order: start token and separators, classes, words (global ids of `layout`), null class if any.
    Letters: B batch, L ids per clip, P length of the prompt, R length of the target.

    Args:
        layout: of a clip's ids.
        num_classes: of class-conditional generators; 0 for others.
        null_class: whether there is a class that means "any", which guidance needs.
        given_clip: whether the prompt holds the ids of another clip, such as the given frames of frame prediction.
    """

    layout: TokenLayout
    num_classes: int = 0
    null_class: bool = False
    given_clip: bool = False

    def __post_init__(self) -> None:
        if not self.layout.num_temporal:
            raise ValueError("generators need the layout of clips; this one is of images: it has no temporal queries")
        if self.num_classes < 0:
            raise ValueError(f"num_classes must be at least 0; got {self.num_classes}")
        if self.null_class and not self.num_classes:
            raise ValueError("a null class needs classes beside it")
        if self.given_clip and self.num_classes:
            raise ValueError("a prompt holds a class or a given clip, not both")

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """{name: id} of the start token and the separators."""
        return {name: number for number, name in enumerate(_SPECIALS[self.layout.lookup])}

    @property
    def class_start(self) -> int:
        """Id of class 0."""
        return len(self.special_ids)

    @property
    def word_start(self) -> int:
        """Id of the word with global id 0."""
        return self.class_start + self.num_classes

    @property
    def null_id(self) -> int | None:
        return self.word_start + self.layout.vocab_size if self.null_class else None

    @property
    def vocab_size(self) -> int:
        return self.word_start + self.layout.vocab_size + self.null_class

    @cached_property
    def separators(self) -> tuple[tuple[int, ...], ...]:
        """Ids of the separators before each segment."""
        return tuple(tuple(self.special_ids[name] for name in run) for run in _SEPARATORS[self.layout.lookup])

    @cached_property
    def segment_starts(self) -> tuple[int, ...]:
        """Position in the target of each segment's first word."""
        starts, end = [], 0
        for separators, segment in zip(self.separators, self.layout.segments, strict=True):
            starts.append(end + len(separators))
            end = starts[-1] + segment.length
        return tuple(starts)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The target from its first to its last position."""
        runs, names = [], {number: name for name, number in self.special_ids.items()}
        for separators, segment in zip(self.separators, self.layout.segments, strict=True):
            runs += [Run(names[number], 1, number, number + 1) for number in separators]
            first = self.word_start + segment.vocab_start
            runs.append(Run(segment.name, segment.length, first, first + segment.vocab_size))
        last = self.special_ids["tn"]
        return (*runs, Run("tn", 1, last, last + 1))

    @property
    def target_length(self) -> int:
        return self.segment_starts[-1] + self.layout.segments[-1].length + 1

    @property
    def prompt_length(self) -> int:
        if self.given_clip:
            return 1 + self.target_length
        return 2 if self.num_classes else 1

    @property
    def block_size(self) -> int:
        """Length of the model's input."""
        return self.prompt_length + self.target_length - 1

    def target(self, ids: Tensor) -> Tensor:
        """Global ids (B, L) -> target (B, R)."""
        words, parts = ids + self.word_start, []
        for separators, segment in zip(self.separators, self.layout.segments, strict=True):
            parts += [*(_column(separator, words) for separator in separators), words[:, segment.places]]
        return torch.cat([*parts, _column(self.special_ids["tn"], words)], dim=1)

    def ids(self, target: Tensor) -> Tensor:
        """Target (B, R), or all but its last id -> global ids (B, L). Raises ValueError for other ids or lengths."""
        if target.ndim != 2 or target.shape[1] not in (self.target_length, self.target_length - 1):
            raise ValueError(f"expected targets (B, {self.target_length}); got {tuple(target.shape)}")
        runs = zip(self.segment_starts, self.layout.segments, strict=True)
        ids = torch.cat([target[:, start : start + segment.length] for start, segment in runs], dim=1)
        self.layout.check(ids - self.word_start)
        return ids - self.word_start

    def prompt(
        self,
        condition: Tensor | None = None,
        batch: int = 1,
        device: torch.device | None = None,
        check_values: bool = True,
    ) -> Tensor:
        """Prompts (B, P).

        Args:
            condition: classes (B,), where -1 is the null class, or the ids (B, L) of the given clip.
            batch, device: for unconditional generators, which have no condition.
            check_values: check the values of the condition, which synchronizes with the device.

        Raises ValueError for a condition of the wrong kind, or classes or ids out of range.
        """
        wanted = "the ids of a given clip" if self.given_clip else "classes" if self.num_classes else "no condition"
        if (condition is None) != (wanted == "no condition"):
            got = "none" if condition is None else f"{condition.dtype} {tuple(condition.shape)}"
            raise ValueError(f"this generator's prompt takes {wanted}; got {got}")
        if condition is None:
            return torch.full((batch, 1), self.special_ids["sos"], device=device)
        condition = condition.long()
        if self.given_clip:
            if check_values:
                self.layout.check(condition)
            rest = self.target(condition)
        else:
            rest = self._class_ids(condition, check_values)[:, None]
        return torch.cat((_column(self.special_ids["sos"], condition), rest), dim=1)

    def _class_ids(self, classes: Tensor, check_values: bool) -> Tensor:
        known = f"classes must be one number of 0..{self.num_classes - 1} for each clip"
        if classes.ndim != 1:
            raise ValueError(f"{known}; got shape {tuple(classes.shape)}")
        if check_values:
            lowest = -1 if self.null_class else 0
            wrong = classes[(classes < lowest) | (classes >= self.num_classes)]
            if len(wrong):
                raise ValueError(f"{known}; got class {int(wrong[0])}")
        return torch.where(classes < 0, self.null_id or 0, classes + self.class_start)


def _column(special: int, like: Tensor) -> Tensor:
    """(B, 1) of one id, filled on the device to avoid a copy from the host."""
    return like.new_full((like.shape[0], 1), special)
