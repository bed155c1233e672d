"""sweettok demo: a page in the browser to try a tokenizer."""

from __future__ import annotations

import argparse
import ipaddress
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

from sweettok.cli.options import add_checkpoint, integer, real
from sweettok.demo.clips import Limits, examples
from sweettok.demo.models import load
from sweettok.demo.page import Page, serving
from sweettok.distributed import join_processes
from sweettok.hub import find_shipped, is_shipped

MINI = "mini"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = MINI if is_shipped(MINI) else None
    add_checkpoint(parser, "the tokenizer, of stage 1 or stage 2", required=default is None)
    parser.set_defaults(checkpoint=default)
    add, most = parser.add_argument, Limits()
    add("--generator", metavar="MODEL", help="a generator trained with this tokenizer (default for mini: its own)")
    text = "videos or folders of them (default: synthetic clips)"
    add("--examples", nargs="+", default=[], metavar="VIDEO", help=text)
    add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine alone)")
    add("--port", type=integer(1, 65535), default=7860, metavar="N", help="port to listen at (default: 7860)")
    add("--fps", type=real(0.1, 240), default=8.0, help="frames per second on the page (default: 8)")
    text = "how frames are enlarged (default: bicubic)"
    add("--enlargement", choices=("bicubic", "nearest"), default="bicubic", help=text)
    text = "largest upload in megabytes"
    add("--max-mb", type=integer(1), default=most.megabytes, metavar="N", help=f"{text} (default: {most.megabytes})")
    text = "most frames of an uploaded video"
    add("--max-frames", type=integer(1), default=most.frames, metavar="N", help=f"{text} (default: {most.frames})")


def run(args: argparse.Namespace) -> None:
    generator, part_of_package = args.generator, isinstance(find_shipped(args.checkpoint), Path)
    if generator is None and part_of_package and is_shipped(args.checkpoint, "generator"):
        generator = args.checkpoint
    models = load(args.checkpoint, generator, join_processes().device)
    limits = replace(Limits(), megabytes=args.max_mb, frames=args.max_frames)
    page = Page(models, examples(models.tokenizer, args.examples), limits, args.fps, args.enlargement)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended as by Ctrl-C: temporary files are removed
    if args.host != "localhost" and not ipaddress.ip_address(args.host).is_loopback:
        print(f"warning: whoever reaches {args.host} can use the page, without a password", file=sys.stderr)
    with serving(page, args.host, args.port) as address:
        print(f"{address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
