"""sweettok decode: a file of ids, as `sweettok encode` writes it, back into a video."""

from __future__ import annotations

import argparse

from sweettok.cli.options import add_batch_size, add_checkpoint
from sweettok.distributed import join_processes
from sweettok.store import check_output
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.output import LongTokens
from sweettok.video.long import VIDEO_SUFFIXES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("tokens", metavar="TOKENS", help="a file written by sweettok encode")
    add_checkpoint(parser, "the tokenizer that encoded the video, or a later stage of it")
    add("--out", required=True, metavar="FILE", help="the video, an .mp4 file; without sound")
    add("--tokenizer-size", action="store_true", help="keep the tokenizer's frame size, with any black bars")
    add_batch_size(parser, 4)


def run(args: argparse.Namespace) -> None:
    check_output(args.out, VIDEO_SUFFIXES, (args.tokens, args.checkpoint))
    tokens = LongTokens.load(args.tokens)
    tokenizer = SweetTok.from_pretrained(args.checkpoint).to(join_processes().device)
    tokenizer.decode_long(tokens, args.out, args.batch_size, undo_resize=not args.tokenizer_size)
    print(f"{args.out}: {tokens.chunks.num_frames} frames")
