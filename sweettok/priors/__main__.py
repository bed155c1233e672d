"""Command line: python -m sweettok.priors build | show | convert."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from sweettok.priors.build import build_prior, read_tagged
from sweettok.priors.graph import Prior
from sweettok.priors.io import load_prior, save_prior
from sweettok.priors.released import load_released


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sweettok.priors", description="Codebook priors.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build a prior from captions tagged by part of speech")
    build.add_argument("--captions", nargs="+", required=True, metavar="FILE", help='JSONL: {"key", "text", "words"}')
    build.add_argument("--out", required=True, metavar="DIR")
    build.add_argument("--dim", type=int, default=32, help="width of the word vectors (default 32)")
    build.add_argument("--min-count", type=int, default=1, help="keep words counted at least this often (default 1)")
    build.add_argument(
        "--neighbors", type=int, help="keep one edge to each word's N closest partners (default: an edge per caption)"
    )
    show = commands.add_parser("show", help="sizes and most frequent words of a prior")
    show.add_argument("folder", metavar="DIR")
    convert = commands.add_parser("convert", help="rewrite the released pickles in the safe format")
    convert.add_argument("folder", metavar="RELEASED_FOLDER")
    convert.add_argument("out", metavar="OUT")
    return parser


def describe(prior: Prior, most: int = 10) -> str:
    """A few lines of text: list sizes, vector widths, edges, and the most frequent words."""
    lines = []
    for side, names in (("spatial", ("adjectives", "nouns")), ("temporal", ("adverbs", "verbs"))):
        graph = getattr(prior, side)
        lines.append(
            f"{side}: {graph.num_modifiers} {names[0]} + {graph.num_heads} {names[1]}, "
            f"vectors of {graph.dim}, {graph.edges.shape[1]} edges"
        )
        counts = graph.counts if graph.counts is not None else torch.zeros(len(graph.words), dtype=torch.int64)
        per_list = counts.split([graph.num_modifiers, graph.num_heads])
        for name, words, frequency in zip(names, (graph.modifiers, graph.heads), per_list, strict=True):
            order = frequency.argsort(descending=True, stable=True)[:most].tolist()
            lines.append(f"  {name}: " + ", ".join(words[i] for i in order))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        if args.command == "build":
            prior = build_prior(read_tagged(*args.captions), args.dim, args.min_count, args.neighbors)
            save_prior(prior, args.out)
        elif args.command == "convert":
            prior = load_released(args.folder)
            save_prior(prior, args.out)
        else:
            prior = load_prior(args.folder)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(describe(prior))
    return 0


if __name__ == "__main__":
    sys.exit(main())
