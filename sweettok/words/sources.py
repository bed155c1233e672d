"""Clips and their words, from videos or from token shards."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sweettok.data.lists import some
from sweettok.data.reader import POSITIONS
from sweettok.data.resize import RESIZES as POLICIES
from sweettok.data.tokens import TokenDataset
from sweettok.distributed import join_processes
from sweettok.pixels import to_uint8
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.output import TokenOutput


@dataclass(frozen=True)
class Told:
    """One clip: a name for its files, its ids, and its pixels, uint8 (3, T, H, W), where they were asked for."""

    name: str
    output: TokenOutput
    video: Tensor | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("videos", nargs="*", metavar="VIDEO", help="videos, or still images, to encode; or give --tokens")
    add("--checkpoint", required=True, metavar="MODEL", help="the tokenizer: a folder, or user/name on the hub")
    add("--tokens", metavar="SHARDS", help="folder of token shards of this tokenizer, tokenized or generated")
    add("--rows", type=int, nargs="+", default=[0], metavar="N", help="clips of the shards, from 0 (default: 0)")
    add("--position", choices=POSITIONS[:3], default="center", help="which frames of a video (default: center)")
    add("--aspect", choices=POLICIES, default="crop", help="how frames become the tokenizer's size (default: crop)")


def open_tokens(folder: str | Path, tokenizer: SweetTok) -> TokenDataset:
    """A folder of token shards; ValueError unless they are of this tokenizer."""
    tokens = TokenDataset(folder)
    tokens.check_tokenizer(tokenizer.ids_hash())
    return tokens


@torch.no_grad()
def clips(args: argparse.Namespace, tokenizer: SweetTok, pixels: bool) -> Iterator[Told]:
    """The clips that the arguments name; those of shards are decoded where `pixels` are wanted.

    Raises FileNotFoundError and ValueError (also ClipError) naming what is wrong.
    """
    if bool(args.videos) == (args.tokens is not None):
        raise ValueError("give videos or --tokens SHARDS, one of them")
    tokenizer = tokenizer.to(join_processes().device)
    yield from _of_tokens(args, tokenizer, pixels) if args.tokens else _of_videos(args, tokenizer)


def _of_videos(args: argparse.Namespace, tokenizer: SweetTok) -> Iterator[Told]:
    repeated = [name for name, times in Counter(Path(path).stem for path in args.videos).items() if times > 1]
    if repeated:
        raise ValueError(f"files are named after the videos, and several have one name: give them one by one"
                         f"{some(repeated)}")  # fmt: skip
    for path in args.videos:
        video = tokenizer.read(path, aspect=args.aspect, position=args.position)
        yield Told(Path(path).stem, tokenizer.encode(video), video[0])


def _of_tokens(args: argparse.Namespace, tokenizer: SweetTok, pixels: bool) -> Iterator[Told]:
    tokens = open_tokens(args.tokens, tokenizer)
    wrong = [row for row in args.rows if not 0 <= row < len(tokens)]
    if wrong:
        raise ValueError(f"--rows must be 0..{len(tokens) - 1}, the clips in {args.tokens}; got {wrong[0]}")
    for row in args.rows:
        item = tokens[row]
        ids = item["ids"][None]
        video = to_uint8(tokenizer.decode(ids, tokens.manifest.num_frames))[0].cpu() if pixels else None
        yield Told(f"{row:05d}_{Path(item['key']).name}", tokenizer.describe(ids), video)
