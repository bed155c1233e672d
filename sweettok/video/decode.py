"""The decode command: a file of ids, as the encode command writes it, back into a video."""

from __future__ import annotations

import argparse

from sweettok.distributed import join_processes
from sweettok.tokenizer.model import SweetTok
from sweettok.video.files import OUTPUTS, check_output
from sweettok.video.long import LongTokens, decode_long


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("tokens", metavar="TOKENS", help="what python -m sweettok.video encode has written")
    add("--checkpoint", required=True, metavar="MODEL", help="the tokenizer that encoded, or a later stage of it")
    add("--out", required=True, metavar="FILE", help="the video, an .mp4 file; sound is not kept")
    add("--batch-size", type=int, default=4, metavar="N", help="clips decoded together (default: 4)")
    add("--tokenizer-size", action="store_true", help="leave frames at the tokenizer's size, with their bars")


def main(args: argparse.Namespace) -> None:
    """Decode `args.tokens` into `args.out`; ValueError and FileNotFoundError name what is wrong."""
    check_output(args.out, OUTPUTS)
    tokens = LongTokens.load(args.tokens)
    tokenizer = SweetTok.from_pretrained(args.checkpoint).to(join_processes().device)
    decode_long(tokenizer, tokens, args.out, args.batch_size, undo_aspect=not args.tokenizer_size)
    print(f"{args.out}: {tokens.chunks.num_frames} frames")
