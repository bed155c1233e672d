"""sweettok answer: ask a language model of the stage vtok about videos."""

from __future__ import annotations

import argparse

from sweettok.cli.options import add_checkpoint, integer
from sweettok.data.reader import probe
from sweettok.distributed import join_processes
from sweettok.vtok.language import VideoLanguageModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("videos", nargs="+", metavar="VIDEO")
    add_checkpoint(parser, "a language model of the stage vtok", shipped=False)
    add("--question", required=True, action="append", metavar="TEXT", help="may be given several times")
    add("--options", nargs="+", metavar="ANSWER", help="choose the likeliest of these (default: write freely)")
    add("--max-new-tokens", type=integer(1), default=32, metavar="N", help="longest free answer (default: 32)")


def run(args: argparse.Namespace) -> None:
    for video in args.videos:
        probe(video)  # an error of any comes before the model is loaded
    model = VideoLanguageModel.from_pretrained(args.checkpoint).to(join_processes().device)
    if model.source is None:
        raise ValueError(f"{args.checkpoint} was saved without a tokenizer, so it cannot read videos")
    for video in args.videos:
        tokens = model.source(video)
        for question in args.question:
            print(f"{video}: {question} {model.answer(tokens, question, args.options, args.max_new_tokens)}")
