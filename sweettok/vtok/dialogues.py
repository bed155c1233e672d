"""Training and held-out data of the language model: groups of questions and captions about clips, and their batches.

Letters: B rows, U rows with questions, G rows with captions, L tokens, C channels, M motion tokens, P patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sweettok.vtok.datasets import TokenClips, question_texts
from sweettok.vtok.sequences import Sequences
from sweettok.vtok.sources import from_stored


class FeatureClips(TokenClips):
    """As TokenClips, for training the projection: items also have "residuals", (M, P, C)."""

    def tokens_of(self, row: int) -> dict[str, Tensor]:
        features = self.features[row]
        tokens = from_stored(features)
        return {"values": tokens.values[0], "kinds": tokens.kinds, "residuals": features.residuals[0]}


class HeldOut(Dataset):
    """All questions and the caption of each clip: an item is a list, for `Dialogues`."""

    def __init__(self, clips: TokenClips):
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, row: int) -> list[dict[str, Any]]:
        caption = self.clips[row]
        tokens = {name: value for name, value in caption.items() if name not in ("caption", "video", "problem")}
        return [*({**tokens, **question_texts(asked)} for asked in self.clips.annotated.questions[row]), caption]


class Dialogues(Dataset):
    """Lists of items, and `collate`, which makes batches of them.

    Args:
        groups: such as `Mixed` and `HeldOut`.
        sequences: of the language model.
        blind: leave out the visual tokens, to know what can be answered without them.
    """

    def __init__(self, groups: Any, sequences: Sequences, blind: bool = False):
        self.groups, self.sequences, self.blind = groups, sequences, blind

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, item: int | tuple[int, int]) -> list[dict[str, Any]]:
        return self.groups[item]

    def collate(self, groups: Sequence[list[dict[str, Any]]]) -> dict[str, Any]:
        """Lists of items -> the batch of `Sequences.collate`, with lists "key" and "problem" of all items, "skill" (U)
        and "caption" (G), and of items that have them "video" (G, 3, T, H, W) and "residuals" (B, M, P, C)."""
        items = [dict(item) for group in groups for item in group]
        videos = [item.pop("video") for item in items if "video" in item]
        if self.blind:
            for item in items:
                item |= {"values": item["values"][:0], "kinds": item["kinds"][:0]}
        for item in items:
            item.pop("times", None)
        batch: dict[str, Any] = self.sequences.collate(items)
        batch["key"] = [item["key"] for item in items]
        batch["problem"] = [item["problem"] for item in items if "problem" in item]
        batch["skill"] = [item.get("skill", "") for item in items if "question" in item]
        batch["caption"] = [item["caption"] for item in items if "question" not in item]
        return batch | ({"video": torch.stack(videos)} if videos else {})
