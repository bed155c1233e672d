"""The show command: the words of a clip, counted."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sweettok.store import write_aside
from sweettok.tokenizer.model import SweetTok
from sweettok.words import sources
from sweettok.words.summary import as_json, as_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sources.add_arguments(parser)
    parser.add_argument("--top", type=int, default=5, metavar="N", help="words of each kind to print (default: 5)")
    parser.add_argument("--out", metavar="FILE", help="write all words with all their places here, as JSON")


def main(args: argparse.Namespace) -> None:
    """Print a summary of each clip; ValueError and FileNotFoundError name what is wrong."""
    if args.top < 1:
        raise ValueError(f"--top must be at least 1, got {args.top}")
    tokenizer = SweetTok.from_pretrained(args.checkpoint)
    told = {}
    for clip in sources.clips(args, tokenizer, pixels=False):
        summary = clip.output.summary()
        told[clip.name] = as_json(summary)
        print(f"{clip.name}\n{as_text(summary, args.top)}")
    if args.out:
        with write_aside(Path(args.out)) as aside:
            text = json.dumps({"grids": tokenizer.config.query_grids, "clips": told}, ensure_ascii=False)
            aside.write_text(f"{text}\n", encoding="utf-8")
