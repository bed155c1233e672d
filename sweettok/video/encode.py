"""The encode command: a video of any length into one file of ids."""

from __future__ import annotations

import argparse

from sweettok.data.resize import RESIZES as POLICIES
from sweettok.distributed import join_processes
from sweettok.tokenizer.model import SweetTok
from sweettok.video.files import check_output
from sweettok.video.long import encode_long


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("video", metavar="VIDEO", help="a video or an image")
    add("--checkpoint", required=True, metavar="MODEL", help="the tokenizer: a folder, or user/name on the hub")
    add("--out", required=True, metavar="FILE", help="the ids, a .safetensors file")
    add("--overlap", type=int, metavar="N", help="frames that neighbouring clips share (default: 2 of 17, 1 of 9)")
    add("--aspect", choices=POLICIES, default="crop", help="how frames become the tokenizer's size (default: crop)")
    add("--batch-size", type=int, default=4, metavar="N", help="clips encoded together (default: 4)")
    add("--max-frames", type=int, metavar="N", help="only the first N frames")


def main(args: argparse.Namespace) -> None:
    """Encode `args.video` into `args.out`; ValueError (also ClipError) and FileNotFoundError name what is wrong."""
    check_output(args.out, (".safetensors",))
    tokenizer = SweetTok.from_pretrained(args.checkpoint).to(join_processes().device)
    options = {"aspect": args.aspect, "batch_size": args.batch_size, "max_frames": args.max_frames}
    tokens = encode_long(tokenizer, args.video, args.overlap, progress=True, **options)
    tokens.save(args.out)
    seconds = "" if tokens.seconds is None else f", {tokens.seconds:.2f} s"
    print(f"{args.out}: {tokens.chunks.num_frames} frames{seconds}, {len(tokens.ids)} clips, {tokens.ids.numel()} ids, "
          f"{tokens.bits:.0f} bits")  # fmt: skip
