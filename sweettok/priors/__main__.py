"""Command line: python -m sweettok.priors build | show | convert."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from sweettok.commands import report_errors
from sweettok.priors.build import Rules, build
from sweettok.priors.captions import PARTS_OF_SPEECH, kind_of
from sweettok.priors.io import load_prior, save_prior
from sweettok.priors.released import load_released, save_released
from sweettok.priors.show import describe, describe_neighbors, describe_overlap
from sweettok.priors.statistics import curves, statistics
from sweettok.priors.stream import alone_in, pack_files
from sweettok.priors.tagging import SpacyTagger
from sweettok.priors.vectors import CausalLMVectors, ClipVectors, TableVectors, VectorSource


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sweettok.priors", description="Codebook priors.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_build(commands)
    show = commands.add_parser("show", help="sizes, frequent words and their neighbours; overlap with another prior")
    show.add_argument("folder", metavar="DIR")
    show.add_argument("--words", nargs="+", default=(), help="whose neighbours (default: the most frequent words)")
    show.add_argument("--against", metavar="DIR", help="another prior: what both have, and what only one has")
    convert = commands.add_parser("convert", help="rewrite a prior: released pickles in the safe format, or back")
    convert.add_argument("folder", metavar="DIR")
    convert.add_argument("out", metavar="OUT")
    convert.add_argument("--to", choices=("native", "released"), default="native", help="(default: native)")
    convert.add_argument(
        "--raise-counts", action="store_true",
        help="released: write spatial counts of ten or less as eleven, so that readers keep the words",
    )  # fmt: skip
    return parser


def _add_build(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("build", help="build a prior from captions")
    add = command.add_argument
    add("--captions", nargs="+", required=True, metavar="FILE",
        help='.txt (a caption a line), .csv, .tsv, .jsonl, each also with .gz; JSON lines with "words": '
        "[[word, part of speech], ...] are not tagged again")  # fmt: skip
    add("--out", required=True, metavar="DIR")
    add("--column", default="text", help="column or key of the captions (default: text)")
    add("--work", metavar="DIR",
        help="keep the tagged captions there for the next build (default: in OUT, and removed at the end)")  # fmt: skip
    add("--processes", type=int, default=1, help="that tag captions; the prior does not depend on it (default: 1)")
    add("--tagger", default="en_core_web_sm", metavar="PIPELINE", help="spaCy's (default: en_core_web_sm)")
    add("--lemmatize", action="store_true", help="dictionary forms instead of the words as they stand")

    words = command.add_argument_group("words", "A number, or PART=NUMBER for adjective, noun, adverb, verb.")
    words.add_argument("--min-count", nargs="+", default=["1"], metavar="N", help="keep words counted so often (1)")
    words.add_argument("--most", nargs="+", default=[], metavar="N", help="longest word lists (default: no limit)")
    words.add_argument("--word-bound", type=int, default=1_000_000, help="different words held in memory (1000000)")

    edges = command.add_argument_group("edges", "By default one for each caption that two words share.")
    edges.add_argument("--neighbors", type=int, help="a single edge to each word's N closest partners")
    edges.add_argument("--min-shared", type=int, default=1, help="captions that connected words share (default: 1)")
    edges.add_argument("--max-weight", type=int, help="at most so many edges between two words")

    vectors = command.add_argument_group("word vectors")
    vectors.add_argument("--vectors", default="captions", metavar="captions|clip|llm|FILE",
        help="from the captions (default), CLIP's text encoder, a language model's input embedding, or a text file "
        "with a word and its numbers a line")  # fmt: skip
    vectors.add_argument("--dim", type=int, help="captions: width of the vectors (default 32)")
    vectors.add_argument("--model", help="clip: model of open_clip (ViT-L-14); llm: name at Hugging Face, or a folder")
    vectors.add_argument("--weights", help="clip: weights of this model as open_clip names them (openai), or a file")
    vectors.add_argument("--prompt", help='clip, llm: text with {} for the word ("{}" and " {}")')
    vectors.add_argument("--batch-size", type=int, help="clip: words at a time (256)")
    vectors.add_argument("--device", help="clip: where to run (default: an accelerator if there is one)")
    vectors.add_argument("--drop-unknown", action="store_true", help="FILE: leave out words that it does not hold")


def _per_part(values: Sequence[str], option: str) -> dict[str, int]:
    """["10", "verb=1"] -> a number for each part of speech that has one; later values win."""
    numbers: dict[str, int] = {}
    for value in values:
        part, _, number = value.rpartition("=")
        if not number.isdecimal() or (part and part not in PARTS_OF_SPEECH):
            raise ValueError(f"{option} takes N or PART=N for {', '.join(PARTS_OF_SPEECH)}; got {value!r}")
        numbers.update(dict.fromkeys([part] if part else PARTS_OF_SPEECH, int(number)))
    return numbers


# Options that belong to some source of vectors, and which.
_BELONG = {
    "dim": ("captions",), "model": ("clip", "llm"), "weights": ("clip",), "prompt": ("clip", "llm"),
    "batch_size": ("clip",), "device": ("clip",),
}  # fmt: skip


def _vectors(args: argparse.Namespace) -> int | VectorSource:
    kind = args.vectors if args.vectors in ("captions", "clip", "llm") else "file"
    given = {name: getattr(args, name) for name in _BELONG if getattr(args, name) is not None}
    for name in given:
        if kind not in _BELONG[name]:
            raise ValueError(f"--{name.replace('_', '-')} has no effect with --vectors {args.vectors}")
    if kind == "captions":
        return given.get("dim", 32)
    if kind == "clip":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return ClipVectors(**{"device": str(accelerator or "cpu"), **given})
    if kind == "llm":
        if args.model is None:
            raise ValueError("--vectors llm needs --model, the folder or name of a causal language model")
        return CausalLMVectors(**given)
    if not Path(args.vectors).is_file():
        raise FileNotFoundError(f"--vectors: {args.vectors} is neither captions, clip, llm nor a file")
    return TableVectors(args.vectors)


def _build(args: argparse.Namespace) -> None:
    if args.processes < 1:
        raise ValueError(f"--processes must be at least 1, got {args.processes}")
    rules = Rules(
        _per_part(args.min_count, "--min-count"),
        _per_part(args.most, "--most"),
        args.neighbors,
        args.min_shared,
        args.max_weight,
        args.drop_unknown,
        args.word_bound,
    )
    vectors = _vectors(args)
    plain = any(kind_of(path, args.column) != "tagged" for path in args.captions)
    tagger = SpacyTagger(args.tagger, args.lemmatize) if plain else None
    tagging = f"tagged by {tagger.name}" if tagger else ""
    out = Path(args.out)
    work = args.work or out / "work"
    with alone_in(out, args.work or out):
        chunks = pack_files(args.captions, work, tagger, args.column, args.processes, progress=True)
        built = build(chunks, rules, vectors, tagging)
        save_prior(built.prior, out)
        files = [{"path": str(path), "bytes": os.path.getsize(path)} for path in args.captions]
        told = {"files": files, **statistics(built, rules)}
        (out / "statistics.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (out / "curves.svg").write_text(curves(built.prior), encoding="utf-8")
        if not args.work:
            chunks.remove()
    print(describe(built.prior))


def _show(args: argparse.Namespace) -> None:
    prior = load_prior(args.folder)
    print(describe(prior))
    print(describe_neighbors(prior, args.words))
    if args.against is not None:
        print(f"against {args.against}")
        print(describe_overlap(prior, load_prior(args.against)))


def _convert(args: argparse.Namespace) -> None:
    if args.to == "released":
        prior = load_prior(args.folder)
        moved = save_released(prior, args.out, args.raise_counts)
        if moved:
            print(f"{moved} edges to adverbs that are also verbs are edges to the verbs there")
    elif args.raise_counts:
        raise ValueError("--raise-counts has no effect without --to released")
    else:
        prior = load_released(args.folder)
        save_prior(prior, args.out)
    print(describe(prior))


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    commands = {"build": _build, "show": _show, "convert": _convert}
    return report_errors(lambda: commands[args.command](args))


if __name__ == "__main__":
    sys.exit(main())
