"""sweettok sample: generate videos with a trained generator."""

from __future__ import annotations

import argparse
from dataclasses import fields

from sweettok.cli.options import add_batch_size, add_seed, integer, real
from sweettok.distributed import join_processes
from sweettok.generator.config import SamplingConfig
from sweettok.inference.sample import SHEETS, SampleSettings, sample
from sweettok.store import check_output_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--generator", required=True, metavar="MODEL", help="a trained generator: a folder, or user/name on the hub")
    add("--tokenizer", required=True, metavar="MODEL", help="the tokenizer it was trained with, of stage 1 or stage 2")
    add("--out", required=True, metavar="DIR", help="folder of the samples; existing files are kept")
    count = parser.add_mutually_exclusive_group()
    count.add_argument("--per-class", type=integer(1), metavar="N", help="samples of each class")
    count.add_argument("--num", type=integer(1), metavar="N", help="all samples, spread evenly over the classes")
    add("--classes", nargs="+", metavar="CLASS", help="names or numbers from 0 (default: all)")
    add("--given", metavar="SHARDS", help="shards of tokenize --given-frames: sample i continues row i (default: all)")
    add("--cfg-scale", type=float, default=1.0, metavar="S", help="classifier-free guidance (default: 1, none)")
    add(
        "--cfg-schedule",
        choices=("constant", "linear"),
        default="constant",
        help="linear: rises from 1 at the first word",
    )
    add("--temperature", type=float, default=1.0, help="0: always the most likely word (default: 1)")
    add("--top-k", type=integer(1), metavar="K", help="draw only from the K most likely words")
    add("--top-p", type=float, metavar="P", help="draw only from the most likely words with total probability P")
    add_seed(parser)
    add_batch_size(parser, 8)
    add("--fps", type=real(positive=True), default=8.0, help="frames per second of the videos (default: 8)")
    add("--no-videos", action="store_true", help="write only the contact sheets, no video of each sample")
    text = "no: float32; bf16: faster, some ids differ (default: bf16, on CPUs no)"
    add("--precision", choices=("auto", "no", "bf16"), default="auto", help=text)
    text = "draw by graphs of torch.compile, which take minutes to make at the start"
    add("--compile", action="store_true", help=text)


def run(args: argparse.Namespace) -> None:
    how = SamplingConfig(**{field.name: getattr(args, field.name) for field in fields(SamplingConfig)})
    settings = SampleSettings(
        how, args.seed, args.batch_size, args.fps, not args.no_videos, args.precision, args.compile
    )
    check_output_folder(args.out, inputs=(args.generator, args.tokenizer, args.given))
    wanted = {name: getattr(args, name) for name in ("num", "per_class", "classes", "given")}
    samples = sample(args.generator, args.tokenizer, args.out, settings, **wanted)
    if join_processes().is_main_process:
        print(f"{args.out}: {len(samples)} samples, {', '.join(SHEETS)}")
