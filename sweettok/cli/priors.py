"""`sweettok priors`: build a codebook prior from captions, describe one, or convert between file formats."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from sweettok.cli.main import Command
from sweettok.cli.options import given, integer
from sweettok.priors import load_prior, save_prior
from sweettok.priors.build import Rules, build
from sweettok.priors.captions import PARTS_OF_SPEECH, kind_of
from sweettok.priors.chunks import LOCK, pack_files
from sweettok.priors.io import check_prior_output
from sweettok.priors.released import load_released, save_released
from sweettok.priors.summary import describe, describe_neighbors, describe_overlap, plot, statistics
from sweettok.priors.tagging import SpacyTagger
from sweettok.priors.vectors import CausalLMVectors, ClipVectors, TableVectors, VectorSource
from sweettok.store import check_output, check_output_folder, lock, write_aside

# The sources of vectors that each of these options applies to.
VECTOR_OPTIONS = {"dim": ("captions",), "model": ("clip", "llm"), "weights": ("clip",), "prompt": ("clip", "llm")}
CAPTIONS_HELP = (
    '.txt (a caption per line), .csv, .tsv or .jsonl, each also with .gz; JSON lines with "words": '
    "[[word, part of speech], ...] are not tagged"
)
VECTORS_HELP = (
    "computed from the captions (default), CLIP's text encoder, a language model's input embedding, or a text file "
    "with a word and its numbers per line"
)


def add_build(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--captions", nargs="+", required=True, metavar="FILE", help=CAPTIONS_HELP)
    add("--out", required=True, metavar="DIR")
    add("--column", default="text", help="column or key of the captions (default: text)")
    add("--work", metavar="DIR", help="folder for tagged captions, kept for other builds (default: OUT/work, deleted)")
    add("--processes", type=integer(1), default=1, metavar="N", help="processes that tag captions (default: 1)")
    add("--tagger", default="en_core_web_sm", metavar="PIPELINE", help="spaCy pipeline (default: en_core_web_sm)")
    add("--lemmatize", action="store_true", help="use dictionary forms instead of the words as written")
    add = parser.add_argument_group("words", "N, or PART=N with adjective, noun, adverb or verb as PART.").add_argument
    add("--min-count", nargs="+", default=["1"], metavar="N", help="fewest occurrences of a word (default: 1)")
    add("--most", nargs="+", default=[], metavar="N", help="largest number of words (default: no limit)")
    add = parser.add_argument_group("edges", "By default one for each caption with both words.").add_argument
    add("--neighbors", type=integer(1), metavar="N", help="only single edges to the N closest partners of each word")
    add("--min-shared", type=integer(1), default=1, metavar="N", help="fewest captions with both words (default: 1)")
    add("--max-weight", type=integer(1), metavar="N", help="largest number of edges between two words")
    add = parser.add_argument_group("word vectors").add_argument
    add("--vectors", default="captions", metavar="captions|clip|llm|FILE", help=VECTORS_HELP)
    add("--dim", type=integer(1), metavar="N", help="captions: width of the vectors (default: 32)")
    add("--model", help="clip: model of open_clip (default: ViT-L-14); llm: name at Hugging Face, or a folder")
    add("--weights", help="clip: name of the model's weights in open_clip, or a file")
    add("--prompt", help='clip, llm: text with {} for the word (default: "{}" for clip, " {}" for llm)')
    add("--drop-unknown", action="store_true", help="FILE: leave out words that are not in the file")


def run_build(args: argparse.Namespace) -> None:
    rules = Rules(
        per_part(args.min_count, "--min-count"),
        per_part(args.most, "--most"),
        args.neighbors,
        args.min_shared,
        args.max_weight,
        args.drop_unknown,
    )
    vectors = vector_source(args)
    out, work = Path(args.out), Path(args.work or Path(args.out, "work"))
    tables = [vectors.path] if isinstance(vectors, TableVectors) else []
    check_prior_output(out, [*args.captions, *tables])
    check_output(out / "statistics.json", inputs=[*args.captions, *tables])
    check_output_folder(work, args.captions)
    plain = any(kind_of(path, args.column) != "tagged" for path in args.captions)
    tagger = SpacyTagger(args.tagger, args.lemmatize) if plain else None
    with lock(work / LOCK):
        chunks = pack_files(args.captions, work, tagger, args.column, args.processes)
        built = build(chunks, rules, vectors, f"tagged by {tagger.name}" if tagger else "")
        save_prior(built.prior, out)
        files = [{"path": path, "bytes": os.path.getsize(path)} for path in args.captions]
        with write_aside(out / "statistics.json") as aside:
            text = json.dumps({"files": files, **statistics(built, rules)}, indent=1, ensure_ascii=False)
            aside.write_text(text + "\n", encoding="utf-8")
        if not args.work:
            chunks.remove()
    print(describe(built.prior))


def per_part(values: Sequence[str], option: str) -> dict[str, int]:
    """["10", "verb=1"] -> numbers by part of speech; later values replace earlier ones."""
    numbers: dict[str, int] = {}
    for value in values:
        part, _, number = value.rpartition("=")
        if not number.isdecimal() or (part and part not in PARTS_OF_SPEECH):
            raise ValueError(f"{option} takes N or PART=N for {', '.join(PARTS_OF_SPEECH)}; got {value!r}")
        numbers.update(dict.fromkeys([part] if part else PARTS_OF_SPEECH, int(number)))
    return numbers


def vector_source(args: argparse.Namespace) -> int | VectorSource:
    """The `vectors` argument of `build`."""
    kind = args.vectors if args.vectors in ("captions", "clip", "llm") else "file"
    options = given(args, *VECTOR_OPTIONS)
    for name in options:
        if kind not in VECTOR_OPTIONS[name]:
            raise ValueError(f"--{name} has no effect with --vectors {args.vectors}")
    if kind == "captions":
        return options.get("dim", 32)
    if kind == "clip":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return ClipVectors(device=str(accelerator or "cpu"), **options)
    if kind == "llm":
        if args.model is None:
            raise ValueError("--vectors llm needs --model, the folder or name of a causal language model")
        return CausalLMVectors(**options)
    if not Path(args.vectors).is_file():
        raise FileNotFoundError(f"--vectors {args.vectors} is neither captions, clip, llm nor a file")
    return TableVectors(args.vectors)


def add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--words", nargs="+", default=(), help="show nearest words of these (default: frequent words)")
    parser.add_argument("--against", metavar="DIR", help="compare with another prior")
    parser.add_argument("--plot", metavar="FILE", help="write a PNG of occurrences and partners by rank")


def run_show(args: argparse.Namespace) -> None:
    if args.plot is not None:
        check_output(args.plot, (".png",), [args.folder])
    prior = load_prior(args.folder)
    print(describe(prior))
    print(describe_neighbors(prior, args.words))
    if args.against is not None:
        print(f"against {args.against}")
        print(describe_overlap(prior, load_prior(args.against)))
    if args.plot is not None:
        plot(prior, Path(args.plot))


def add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("--to", choices=("native", "released"), default="native", help="(default: native)")
    text = "released: write counts of adjectives and nouns up to 10 as 11, so that readers keep these words"
    parser.add_argument("--raise-counts", action="store_true", help=text)


def run_convert(args: argparse.Namespace) -> None:
    if args.to == "native" and args.raise_counts:
        raise ValueError("--raise-counts has no effect without --to released")
    check_prior_output(args.out, [args.folder], released=args.to == "released")
    prior = load_prior(args.folder) if args.to == "released" else load_released(args.folder)
    if args.to == "native":
        save_prior(prior, args.out)
    elif changed := save_released(prior, args.out, args.raise_counts):
        print(f"{changed} edges to adverbs that are also verbs became edges to the verbs")
    print(describe(prior))


SHOW_HELP = "print sizes, frequent words, nearest words, and the overlap with another prior"
COMMANDS = {
    "build": Command("build a prior from captions", add_build, run_build),
    "show": Command(SHOW_HELP, add_show, run_show),
    "convert": Command("convert published pickles to safe files, or back", add_convert, run_convert),
}
