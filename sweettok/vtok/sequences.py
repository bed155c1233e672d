"""Sequences of text and visual tokens: [tokens; question; answer] and [caption; start; tokens], and batches of both.

Letters: B rows, N positions, L visual tokens, C channels, U rows with questions, A tokens of an answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from sweettok.vtok.language_config import TemplateConfig
from sweettok.vtok.output import KEY
from sweettok.vtok.text import encode

# What stands at a position. CAPTION is the text that guidance leaves out; START predicts the first visual token.
PADDING, TEXT, ANSWER, CAPTION, VISUAL, START = range(6)


@dataclass(frozen=True)
class Row:
    """One sequence: ids of text, 0 elsewhere, and the role of each position."""

    ids: list[int]
    roles: list[int]


class Sequences:
    """Builds rows with a tokenizer and a template.

    Args:
        max_length: longest row, or None.

    Raises ValueError for a template with tokens, such as <s>, that the tokenizer does not have, or without an end of
    answers.
    """

    def __init__(self, tokenizer: Any, template: TemplateConfig, max_length: int | None = None):
        self.tokenizer, self.template, self.max_length = tokenizer, template, max_length
        if not template.after_answer:
            raise ValueError("language.template.after_answer is empty: give the token that ends an answer")
        for token in re.findall(r"<[^<>\s]+>", "".join(vars(template).values())):
            if len(encode(tokenizer, token)) != 1:
                raise ValueError(
                    f"language.template has {token}, which is no token of this model's tokenizer: use the template of "
                    "the model, such as those in sweettok.vtok.language_config.TEMPLATES"
                )

    @property
    def end_id(self) -> int:
        """The id that ends an answer."""
        return encode(self.tokenizer, self.template.after_answer)[0]

    def question(self, num_visual: int, question: str, answer: str | None = None) -> Row:
        """Tokens, question and answer; without an answer, what stands before it."""
        t = self.template
        parts = [(TEXT, t.before_video), (VISUAL, num_visual), (TEXT, t.after_video), (TEXT, question)]
        parts.append((TEXT, t.after_question))
        return self._row(parts if answer is None else [*parts, (ANSWER, answer), (ANSWER, t.after_answer)])

    def caption(self, num_visual: int, caption: str | None) -> Row:
        """Caption, start and tokens; None: no caption, which guidance needs."""
        t = self.template
        parts = [(TEXT, t.before_prompt), (CAPTION, caption or ""), (TEXT, t.after_prompt)]
        return self._row([*parts, (START, 1), (VISUAL, num_visual)])

    def _row(self, parts: Sequence[tuple[int, str | int]]) -> Row:
        ids: list[int] = []
        roles: list[int] = []
        for role, content in parts:
            new = encode(self.tokenizer, content) if isinstance(content, str) else [0] * content
            ids += new
            roles += [role] * len(new)
        if self.max_length is not None and len(ids) > self.max_length:
            visual = roles.count(VISUAL)
            raise ValueError(
                f"{visual} visual tokens and {len(ids) - visual} of text do not fit the language model's "
                f"{self.max_length} positions: give shorter clips or texts"
            )
        return Row(ids, roles)

    def collate(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """Items of training data -> a batch for `VideoLanguageModel.forward`; rows with questions come first.

        Args:
            items: mappings, or lists of them as from `Mixed`, with `values` (L, C), `kinds` (L,), and either `question`
                and `answer`, or `caption`. Their numbers of tokens may differ. Other entries are stacked if they are
                tensors.

        Returns:
            ids, roles (B, N), values (B, L, C), kinds (B, L), answers (U, A): positions of answers' tokens, -1 for
            padding, and order (B,): the index of each row's item.
        """
        items = [item for group in items for item in (group if isinstance(group, list) else [group])]
        for item in items:
            if not ({"question", "answer"} <= item.keys() or "caption" in item):
                raise ValueError(f"an item needs a question and its answer, or a caption; got {', '.join(item)}")
        order = sorted(range(len(items)), key=lambda i: "question" not in items[i])
        items = [items[i] for i in order]
        rows = []
        for item in items:
            if "question" in item:
                if not item["answer"]:
                    raise ValueError(f"the question {item['question']!r} has no answer")
                rows.append(self.question(len(item["values"]), item["question"], item["answer"]))
            else:
                rows.append(self.caption(len(item["values"]), item["caption"]))
        answers = [
            torch.tensor([i for i, role in enumerate(row.roles) if role == ANSWER])
            for row, item in zip(rows, items, strict=True)
            if "question" in item
        ]
        padded = pad_sequence(answers, True, -1) if answers else torch.zeros(0, 0, dtype=torch.long)
        known = ("values", "kinds", "question", "answer", "caption")
        others = [name for name, value in items[0].items() if isinstance(value, Tensor) and name not in known]
        return {name: torch.stack([item[name] for item in items]) for name in others} | {
            **pad_rows(rows),
            "values": pad_sequence([item["values"] for item in items], True),
            "kinds": pad_sequence([item["kinds"] for item in items], True),
            "answers": padded,
            "order": torch.tensor(order),
        }


def pad_rows(rows: Sequence[Row], left: bool = False) -> dict[str, Tensor]:
    """Rows -> ids and roles (B, N), padded on the right, or on the left, where generation ends at the same place."""
    side = {"batch_first": True, "padding_side": "left" if left else "right"}
    return {
        "ids": pad_sequence([torch.tensor(row.ids) for row in rows], padding_value=0, **side),
        "roles": pad_sequence([torch.tensor(row.roles) for row in rows], padding_value=PADDING, **side),
    }


def text_positions(mask: Tensor) -> Tensor:
    """Positions (B, N) from a mask (B, N): 0, 1, 2, ... where it is set."""
    return (mask.long().cumsum(1) - 1).clamp_min(0)


def grid_positions(mask: Tensor, roles: Tensor, kinds: Tensor, grid: int) -> Tensor:
    """Positions in time, height and width (3, B, N) from a mask and roles (B, N), and kinds (B, L) of visual tokens.

    Text has three equal positions. Visual tokens start at the next position p: those of a key frame, of which there are
    `grid`, are at height and width p + row and p + column of a square, motion tokens at its centre; time is p + frame.
    Text goes on after the largest of them, as in Qwen2.5-VL.
    """
    text, visual = text_positions(mask), roles == VISUAL
    if not kinds.shape[1]:
        return text.expand(3, -1, -1)
    kind = kinds.gather(1, (visual.cumsum(1) - 1).clamp_min(0))
    key, side = visual & (kind == KEY), math.isqrt(grid - 1) + 1
    place = (key.cumsum(1) - 1).clamp_min(0) % grid
    frame = ((visual & ~key) | (key & (place == 0))).cumsum(1) - 1
    start = text.masked_fill(~visual, mask.shape[1]).amin(1, keepdim=True)
    centre = torch.full_like(place, (side - 1) // 2)
    offsets = torch.stack((frame, torch.where(key, place // side, centre), torch.where(key, place % side, centre)))
    extent = torch.where(visual, offsets, -1).amax((0, 2))[:, None] + 1
    after = text - visual.sum(1, keepdim=True) + extent
    others = torch.where(visual.cumsum(1) > 0, after, text).expand(3, -1, -1)
    return torch.where(visual, start + offsets, others)


class Mixed(Dataset):
    """Groups of items, so that every batch has questions and captions in the stated ratio, shuffled or not.

    An item is a list for `Sequences.collate`, which takes a list of such lists. An index may be (epoch, index).

    Args:
        questions, captions: data sets of items; the shorter one is repeated.
        ratio: (questions, captions) of a group; one of them may be 0.
    """

    def __init__(self, questions: Dataset, captions: Dataset, ratio: tuple[int, int] = (1, 1)):
        pairs = zip((questions, captions), ratio, strict=True)
        self.parts = tuple((data, share) for data, share in pairs if share)
        if min(ratio) < 0 or not self.parts or not min(len(data) for data, _ in self.parts):
            raise ValueError(
                f"expected a ratio of whole numbers, not both 0, and items of what it counts; got {tuple(ratio)}, "
                f"{len(questions)} questions and {len(captions)} captions"
            )

    def __len__(self) -> int:
        """Groups until each item has come at least once."""
        return max(-(-len(data) // share) for data, share in self.parts)

    def __getitem__(self, item: int | tuple[int, int]) -> list[Mapping[str, Any]]:
        epoch, index = item if isinstance(item, tuple) else (None, item)
        places = [(data, (index * share + i) % len(data)) for data, share in self.parts for i in range(share)]
        return [data[place if epoch is None else (epoch, place)] for data, place in places]
