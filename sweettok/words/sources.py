"""Clips and their words, from videos or from token shards."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sweettok.data.lists import IMAGE_SUFFIXES, some
from sweettok.data.processes import join_processes
from sweettok.data.reader import read_clip, read_image
from sweettok.data.tokens import TokenDataset
from sweettok.models.output import TokenOutput
from sweettok.models.tokenizer import SweetTok
from sweettok.pixels import to_uint8

POSITIONS = ("first", "center", "last")


@dataclass(frozen=True)
class Told:
    """One clip: a name for its files, its ids, and its pixels, uint8 (3, T, H, W), where they were asked for."""

    name: str
    output: TokenOutput
    video: Tensor | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("videos", nargs="*", metavar="VIDEO", help="videos, or still images, to encode; or give --tokens")
    add("--checkpoint", required=True, metavar="DIR", help="the tokenizer: config.json and model.safetensors")
    add("--tokens", metavar="SHARDS", help="folder of token shards of this tokenizer, tokenized or generated")
    add("--rows", type=int, nargs="+", default=[0], metavar="N", help="clips of the shards, from 0 (default: 0)")
    add("--position", choices=POSITIONS, default="center", help="which frames of a video (default: center)")


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
    config = tokenizer.config
    for path in args.videos:
        size = (config.height, config.width)
        if Path(path).suffix.lower() in IMAGE_SUFFIXES:
            video = read_image(path, size)
        else:
            video = read_clip(path, config.num_frames, size, position=args.position)
        output = tokenizer.encode(video[None])
        yield Told(Path(path).stem, output, video)


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
