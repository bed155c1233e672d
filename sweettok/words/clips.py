"""Clips with their words, from videos or from token shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sweettok.data.lists import some
from sweettok.data.tokens import TokenDataset
from sweettok.pixels import to_uint8
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.output import TokenOutput


@dataclass(frozen=True)
class Clip:
    """One clip: a name for the files made of it, and a function that returns its ids and its pixels.

    Pixels are uint8 (3, T, H, W), or None where they were not asked for.
    """

    name: str
    load: Callable[[], tuple[TokenOutput, Tensor | None]]


def video_clips(tokenizer: SweetTok, paths: Sequence[str | Path], **preprocessing: Any) -> list[Clip]:
    """Clips of video or image files, encoded when they are loaded.

    Args:
        preprocessing: changes to the tokenizer's own preprocessing, as of `SweetTok.read`.

    Raises ValueError if two files have the same name.
    """
    repeated = [name for name, times in Counter(Path(path).stem for path in paths).items() if times > 1]
    if repeated:
        raise ValueError(f"several videos have the same name, after which outputs are named{some(repeated)}")
    return [Clip(Path(path).stem, partial(_encode, tokenizer, path, preprocessing)) for path in paths]


def token_clips(tokenizer: SweetTok, folder: str | Path, rows: Sequence[int], pixels: bool) -> list[Clip]:
    """Clips of token shards, by number from 0; with `pixels` they are decoded when they are loaded."""
    tokens = open_tokens(folder, tokenizer)
    for row in rows:
        if not 0 <= row < len(tokens):
            raise ValueError(f"{folder} has rows 0 to {len(tokens) - 1}; got {row}")
    return [
        Clip(f"{row:05d}_{Path(tokens[row]['key']).name}", partial(_decode, tokenizer, tokens, row, pixels))
        for row in rows
    ]


def open_tokens(folder: str | Path, tokenizer: SweetTok) -> TokenDataset:
    """A folder of token shards; ValueError unless they are from this tokenizer."""
    tokens = TokenDataset(folder)
    tokens.check_tokenizer(tokenizer.ids_hash())
    return tokens


@torch.no_grad()
def _encode(tokenizer: SweetTok, path: str | Path, preprocessing: dict[str, Any]) -> tuple[TokenOutput, Tensor]:
    video = tokenizer.read(path, **preprocessing)
    return tokenizer.encode(video), video[0]


@torch.no_grad()
def _decode(tokenizer: SweetTok, tokens: TokenDataset, row: int, pixels: bool) -> tuple[TokenOutput, Tensor | None]:
    ids = tokens[row]["ids"][None]
    video = to_uint8(tokenizer.decode(ids, tokens.manifest.num_frames))[0].cpu() if pixels else None
    return tokenizer.describe(ids), video
