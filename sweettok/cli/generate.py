"""sweettok generate: make videos of captions with a language model of the stage vtok and its video decoder."""

from __future__ import annotations

import argparse

from sweettok.cli.options import add_batch_size, add_checkpoint, add_seed, integer, real
from sweettok.distributed import join_processes
from sweettok.inference.prompts import SHEET, PromptSettings, generate_prompts, read_prompts
from sweettok.store import check_output_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("captions", nargs="*", metavar="CAPTION", help="texts of videos")
    add("--prompts", metavar="FILE", help="instead: JSON Lines with id and prompt, as of `eval tvalign-prompts`")
    add_checkpoint(parser, "a language model of the stage vtok", shipped=False)
    add("--out", required=True, metavar="DIR", help="folder of the videos; existing ones are kept")
    add("--cfg-scale", type=real(), default=1.0, metavar="S", help="guidance of the language model (default: 1, none)")
    add("--decoder-scale", type=real(), default=1.0, metavar="S", help="guidance of the video decoder (default: 1)")
    add("--steps", type=integer(1), metavar="N", help="steps of the video decoder (default: its own)")
    add("--frames", type=integer(1), metavar="N", help="frames of each video (default: as in training)")
    add_seed(parser)
    add_batch_size(parser, 8)


def run(args: argparse.Namespace) -> None:
    if bool(args.captions) == (args.prompts is not None):
        raise ValueError("give either captions or --prompts FILE")
    check_output_folder(args.out, (args.checkpoint, args.prompts))
    prompts = {f"{i:05d}": text for i, text in enumerate(args.captions)} or read_prompts(args.prompts)
    settings = PromptSettings(args.seed, args.cfg_scale, args.decoder_scale, args.steps, args.frames)
    videos = generate_prompts(args.checkpoint, prompts, args.out, settings, args.batch_size, join_processes().device)
    print(f"{args.out}: {len(videos)} videos, {SHEET}")
