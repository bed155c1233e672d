"""`python -m sweettok.data`: check lists of clips, import official splits, write synthetic clips, show tokens."""

import argparse
import json
import os
import sys
import threading
from collections import Counter
from pathlib import Path

from sweettok.data.config import DataConfig
from sweettok.data.importers import import_k600, import_ucf101
from sweettok.data.lists import read_entries, write_list
from sweettok.data.scan import KINDS, Problem, scan
from sweettok.data.synthetic import write_synthetic
from sweettok.data.tokens import TokenManifest
from sweettok.data.writer import write_lines


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for bad clips or missing shards, 2 for wrong input."""
    args = _parser().parse_args(arguments)
    try:
        return args.run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sweettok.data", description=__doc__)
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("scan", help="check the clips of a list")
    command.set_defaults(run=_scan)
    command.add_argument("list", type=Path, help="list file, CSV file or folder of clips")
    command.add_argument("--root", type=Path, help="folder that the paths in the list start from (default: the list's)")
    command.add_argument("--against", type=Path, help="another list that must share no clip with it, as of validation")
    command.add_argument("--against-root", type=Path, help="folder that the other list's paths start from")
    command.add_argument("--frames", type=int, default=17, help="frames of the clips to be cut (default: 17)")
    command.add_argument("--stride", type=int, default=1, help="distance of these frames in the video (default: 1)")
    command.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that read")
    command.add_argument("--timeout", type=float, default=DataConfig.read_timeout, metavar="SECONDS",
                         help="that reading a file may take (default: %(default)g, as data.read_timeout)")  # fmt: skip
    command.add_argument("--report", type=Path, help="write the problems there as JSON")
    command.add_argument("--write-clean", type=Path, help="write a list of the clips without problems there")

    command = commands.add_parser("synthetic", help="write a small dataset of drawn clips")
    command.set_defaults(run=_synthetic)
    command.add_argument("out", type=Path)
    command.add_argument("--num-train", type=int, default=256)
    command.add_argument("--num-val", type=int, default=64)
    command.add_argument("--frames", type=int, default=24)
    command.add_argument("--size", type=int, default=64)
    command.add_argument("--fps", type=float, default=12)
    command.add_argument("--seed", type=int, default=0)

    command = commands.add_parser("import-ucf101", help="lists from the official UCF-101 split files")
    command.set_defaults(run=_import_ucf101)
    command.add_argument("root", type=Path, help="folder of the clips")
    command.add_argument("splits", type=Path, help="folder of classInd.txt, trainlist01.txt, testlist01.txt, ...")
    command.add_argument("out", type=Path)
    command.add_argument("--fold", type=int, default=1, help="1 (default), 2 or 3")

    command = commands.add_parser("import-k600", help="lists from a Kinetics-600 annotation CSV")
    command.set_defaults(run=_import_k600)
    command.add_argument("csv", type=Path)
    command.add_argument("root", type=Path, help="folder of the clips")
    command.add_argument("out", type=Path)

    command = commands.add_parser("tokens", help="what a folder of token shards holds")
    command.set_defaults(run=_tokens)
    command.add_argument("folder", type=Path)
    return parser


def _scan(args: argparse.Namespace) -> int:
    base = args.root or (args.list if args.list.is_dir() else args.list.parent)
    if args.write_clean and args.root is None and args.write_clean.parent.resolve() != base.resolve():
        raise ValueError(f"the clean list must be written into {base}, where its paths start from, or --root be given")
    for name, least in (("frames", 1), ("stride", 1), ("workers", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if not 0 < args.timeout <= threading.TIMEOUT_MAX:
        raise ValueError(f"--timeout must be a number of seconds above 0, got {args.timeout:g}")
    entries, _ = read_entries(args.list, args.root)
    against = read_entries(args.against, args.against_root)[0] if args.against else []
    problems = scan(entries, against, args.frames, args.stride, args.workers, True, args.timeout)
    for problem in problems:
        print(problem)
    counts = Counter(problem.kind for problem in problems)
    told = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]) or "no problems"
    print(f"{args.list}: {len(entries)} clips, {told}")
    if args.report:
        write_lines(args.report, [json.dumps(_report(args, len(entries), problems), indent=2)])
    if args.write_clean:
        bad = {problem.entry.where for problem in problems}
        clean = [entry for entry in entries if entry.where not in bad]
        write_list(args.write_clean, ((os.path.relpath(entry.path, base), entry.label) for entry in clean))
        print(f"{args.write_clean}: {len(clean)} clips")
    return 1 if problems else 0


def _report(args: argparse.Namespace, num_clips: int, problems: list[Problem]) -> dict:
    rows = [{"kind": p.kind, "path": str(p.entry.path), "where": p.entry.where, "detail": p.detail} for p in problems]
    return {
        "list": str(args.list),
        "against": str(args.against) if args.against else None,
        "frames": args.frames,
        "stride": args.stride,
        "timeout": args.timeout,
        "clips": num_clips,
        "problems": rows,
    }


def _synthetic(args: argparse.Namespace) -> int:
    options = {name: getattr(args, name) for name in ("num_train", "num_val", "frames", "size", "fps", "seed")}
    print(write_synthetic(args.out, **options, progress=True))
    return 0


def _import_ucf101(args: argparse.Namespace) -> int:
    for path in import_ucf101(args.root, args.splits, args.fold, args.out):
        print(f"{path}: {len(read_entries(path, args.root)[0])} clips, paths from {args.root}")
    return 0


def _import_k600(args: argparse.Namespace) -> int:
    for split, (written, lost) in import_k600(args.csv, args.root, args.out).items():
        print(f"{args.out / split}.txt: {written} clips, paths from {args.root}; {lost} clips not found")
    return 0


def _tokens(args: argparse.Namespace) -> int:
    manifest = TokenManifest.read(args.folder)
    layout, missing = manifest.layout, len(manifest.missing(args.folder))
    segments = ", ".join(f"{s.length} of {s.vocab_size} ({s.name})" for s in layout.segments)
    mirrored = ", each also mirrored" if manifest.flips else ""
    given = f", and those of the first {manifest.given_frames} frames" if manifest.given_frames else ""
    print(f"{args.folder}: {manifest.kind} with tokenizer {manifest.tokenizer_hash[:12]}")
    print(f"{manifest.num_rows} rows: {manifest.num_clips} clips x {manifest.clips_per_video}{mirrored}; "
          f"{manifest.num_classes} classes")  # fmt: skip
    print(f"{layout.length} ids a row, {layout.bits:.0f} bits{given}: {segments}")
    print(f"{manifest.num_frames} frames, stride {manifest.stride}, {manifest.resize}, short {manifest.short}")
    print(f"settings: {json.dumps(manifest.settings)}")
    print(f"{manifest.num_shards - missing} of {manifest.num_shards} shards are written")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
