"""Annotated clips as tokens of a frozen VTok, from stored features: data of the stages that follow the tokenizer.

Letters: L tokens, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sweettok.data.annotations import AnnotatedClips
from sweettok.data.dataset import ClipDataset
from sweettok.data.lists import ClipList
from sweettok.data.questions import Question
from sweettok.distributed import join_processes, main_first
from sweettok.vtok.cache import FeatureDataset, cache_features
from sweettok.vtok.model import VTok
from sweettok.vtok.output import FrameFeatures, VisualTokens
from sweettok.vtok.sources import WordTokens


def open_features(
    tokenizer: VTok | WordTokens, clips: ClipList, folder: str | Path, max_frames: int | None = None, workers: int = 2
) -> FeatureDataset:
    """Features of all clips, in their order; missing ones are computed, by the main process.

    Args:
        folder: of the features of all tokenizers and lists, which have subfolders by their hashes.
        max_frames: only so many frames of each clip are read.
        workers: threads that read clips.
    """
    name = f"{tokenizer.features_hash()[:12]}-{clips.hash[:12]}" + (f"-{max_frames}" if max_frames else "")
    options = {"max_frames": max_frames} if max_frames else {}
    join_processes()  # stages are built before training joins them
    return main_first(
        lambda: cache_features(tokenizer, clips.keys, clips.paths, Path(folder) / name, workers=workers, **options)
    )


class TokenClips(Dataset):
    """Tokens of clips, with their captions and, if asked for, their pixels.

    An item is {"values": float32 (L, C), "kinds": int64 (L,), "times": float32 (L,), "caption": str, "key": str}, with
    pixels also "video": uint8 (3, T, H, W) and "problem", as of `ClipDataset`. An index may be (epoch, index).

    Args:
        tokenizer: makes tokens of the features; it is not trained.
        features: of `annotated.clips`.
        pixels: reads the same clips, from their first frame on.
    """

    def __init__(
        self,
        tokenizer: VTok | WordTokens,
        annotated: AnnotatedClips,
        features: FeatureDataset,
        pixels: ClipDataset | None = None,
    ):
        features.check_tokenizer(tokenizer.features_hash())
        if tuple(features.keys) != annotated.clips.keys:
            raise ValueError(f"the features in {features.folder} are of other clips than the {len(annotated)} given")
        self.tokenizer, self.annotated, self.features, self.pixels = tokenizer, annotated, features, pixels
        self._rows = {key: row for row, key in enumerate(annotated.clips.keys)}

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        row, more = range(len(self))[item[1] if isinstance(item, tuple) else item], {}
        if self.pixels is not None:
            read = self.pixels[item]
            row = self._rows[read["key"]]  # of the clip that replaces an unreadable one
            more = {name: read[name] for name in ("video", "problem") if name in read}
        caption, key = self.annotated.captions[row], self.annotated.clips.keys[row]
        return {**self.tokens_of(row), "caption": caption, "key": key, **more}

    @torch.no_grad()
    def tokens_of(self, row: int) -> dict[str, Tensor]:
        """values (L, C), kinds (L,) and times (L,) of a clip."""
        tokens = self.tokenizer.project(self.features[row])
        return {"values": tokens.values[0], "kinds": tokens.kinds, "times": tokens.times[0]}

    @torch.no_grad()
    def tokens(self, rows: range | None = None) -> VisualTokens:
        """Tokens of all clips, or of those in `rows`, as one batch; for statistics and for evaluation."""
        rows = range(len(self)) if rows is None else rows
        return self.tokenizer.project(FrameFeatures.stack([self.features[row] for row in rows]))


class TokenQuestions(Dataset):
    """All questions about clips, with the clips' tokens.

    An item is that of `clips` without its caption, with "question", "answer" and "skill". An index may be
    (epoch, index).
    """

    def __init__(self, clips: TokenClips):
        self.clips = clips
        self.pairs = [(row, asked) for row, group in enumerate(clips.annotated.questions) for asked in group]
        if not self.pairs:
            raise ValueError("there are no questions: expected questions.jsonl beside the list of clips")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        row, asked = self.pairs[item[1] if isinstance(item, tuple) else item]
        return {**self.clips.tokens_of(row), **question_texts(asked), "key": self.clips.annotated.clips.keys[row]}


def question_texts(asked: Question) -> dict[str, str]:
    """What an item has of a question."""
    return {"question": asked.text, "answer": asked.answer, "skill": asked.skill}
