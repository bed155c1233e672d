"""sweettok encode: encode a video of any length into one file of ids."""

from __future__ import annotations

import argparse

from sweettok.cli.options import RESIZES, add_batch_size, add_checkpoint, given, integer
from sweettok.distributed import join_processes
from sweettok.store import check_output
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.output import LongTokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", metavar="VIDEO", help="a video or an image")
    add_checkpoint(parser)
    add = parser.add_argument
    add("--out", required=True, metavar="FILE", help="output file of the ids, .safetensors")
    add("--overlap", type=integer(0), metavar="N", help="frames that neighbouring clips share (default: 2 of 17)")
    add("--resize", choices=RESIZES, help="how frames get the model's size (default: as in training)")
    add("--stride", type=integer(1), metavar="N", help="take every N-th frame (default: as in training)")
    add("--max-frames", type=integer(1), metavar="N", help="encode at most N frames")
    add_batch_size(parser, 4)


def run(args: argparse.Namespace) -> None:
    check_output(args.out, (".safetensors",), (args.video, args.checkpoint), LongTokens.is_file)
    tokenizer = SweetTok.from_pretrained(args.checkpoint).to(join_processes().device)
    options = given(args, "overlap", "resize", "stride", "max_frames", "batch_size")
    tokens = tokenizer.encode_long(args.video, progress=True, **options)
    tokens.save(args.out)
    seconds = "" if tokens.seconds is None else f", {tokens.seconds:.2f} s"
    frames, clips = tokens.chunks.num_frames, len(tokens.ids)
    print(f"{args.out}: {frames} frames{seconds}, {clips} clips, {tokens.ids.numel()} ids, {tokens.bits:.0f} bits")
