"""`sweettok data`: check lists of clips, import official splits, write synthetic clips, check token shards."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path

from sweettok.cli.main import Command
from sweettok.cli.options import add_checkpoint, add_seed, add_workers, integer, real
from sweettok.data.config import DataConfig
from sweettok.data.importers import import_k600, import_ucf101
from sweettok.data.lists import SUFFIXES, list_lines, local_file, read_entries, relative_path, some, write_list
from sweettok.data.manifest import TokenManifest
from sweettok.data.scan import KINDS, scan
from sweettok.data.scene_files import write_scenes
from sweettok.data.scenes import LEAST_FRAMES
from sweettok.data.shards import expand_shards, index_shards, is_local
from sweettok.data.synthetic_files import write_synthetic
from sweettok.data.tokens import verify
from sweettok.data.writer import write_lines
from sweettok.eval.tokenizers import clip_frames, load_tokenizer, preprocessing_of
from sweettok.hub import model_folder
from sweettok.store import check_output, check_output_folder

FRAMES = 17  # of a clip of the released models


def _scan_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("list", type=Path, help="list file, CSV file or folder of clips")
    add("--root", type=Path, help="folder that paths in the list are relative to (default: the list's)")
    add(
        "--against",
        type=Path,
        help="another list, such as the validation list, that must share no clip with it",
    )
    add("--against-root", type=Path, help="folder that paths in the other list are relative to")
    add_checkpoint(parser, "the tokenizer that the clips are for, which sets --frames and --stride", required=False)
    add("--frames", type=integer(), metavar="N", help=f"frames of a clip (default: {FRAMES}, or the model's)")
    add("--stride", type=integer(), metavar="N", help="distance between a clip's frames (default: 1, or the model's)")
    add_workers(parser, min(8, os.cpu_count() or 1))
    seconds = DataConfig.read_timeout
    text = f"time limit of reading a file (default: {seconds:g}, as data.read_timeout)"
    add("--timeout", type=real(0, 1e6, positive=True), default=seconds, metavar="SECONDS", help=text)
    add("--report", type=Path, help="write the problems to this JSON file")
    add("--write-clean", type=Path, metavar="LIST", help="write the clips without problems to this list file")


def _scan(args: argparse.Namespace) -> int:
    base = args.root or (args.list if args.list.is_dir() else args.list.parent)
    if args.write_clean and args.root is None and args.write_clean.parent.resolve() != base.resolve():
        raise ValueError(f"--write-clean must be in {base}, to which its paths are relative, or --root must be given")
    entries, _ = read_entries(args.list, args.root)
    against = read_entries(args.against, args.against_root)[0] if args.against else []
    files = {local_file(entry) for entry in (*entries, *against)}
    inputs = [source for source in {args.list, args.against, *files} - {None} if not source.is_dir()]
    if args.report:
        check_output(args.report, (".json",), inputs)
    if args.write_clean:
        lines = set(list_lines((relative_path(entry.path, base), entry.label) for entry in entries))

        def of_this_list(path: Path) -> bool:
            return lines.issuperset(path.read_text(encoding="utf-8", errors="replace").splitlines())

        check_output(args.write_clean, (".txt",), inputs, owned=of_this_list)
    frames, stride = _clip_length(args)
    problems = scan(entries, against, frames, stride, args.workers, True, args.timeout)
    for problem in problems:
        print(problem)
    counts = Counter(problem.kind for problem in problems)
    found = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]) or "no problems"
    print(f"{args.list}: {len(entries)} clips, {found}")
    if args.report:
        settings = {name: getattr(args, name) for name in ("list", "against", "timeout")}
        settings |= {"frames": frames, "stride": stride}
        rows = [{"kind": p.kind, "path": p.entry.path, "where": p.entry.where, "detail": p.detail} for p in problems]
        report = {"kind": "scan", **settings, "clips": len(entries), "problems": rows}
        write_lines(args.report, [json.dumps(report, indent=2, default=str)])
    if args.write_clean is None:
        advice = ""
        if counts["short"] and args.checkpoint is None and args.frames is None:
            advice = f"; {counts['short']} have fewer than {frames} frames: if the model needs fewer, give --checkpoint"
            advice += " MODEL or --frames N"
        return _report([f"{len({p.entry.where for p in problems})} clips have problems{advice}"] if problems else [])
    bad = {problem.entry.where for problem in problems}
    clean = [entry for entry in entries if entry.where not in bad]
    if not clean:
        raise ValueError(f"{args.list}: every clip has a problem, so {args.write_clean} is not written")
    write_list(args.write_clean, ((relative_path(entry.path, base), entry.label) for entry in clean))
    print(f"{args.write_clean}: {len(clean)} clips")
    return 0


def _clip_length(args: argparse.Namespace) -> tuple[int, int]:
    """Frames and stride of a clip: as given, or else as the model has them."""
    frames, stride = FRAMES, 1
    if args.checkpoint is not None:
        tokenizer = load_tokenizer(model_folder(args.checkpoint))
        frames, stride = clip_frames(tokenizer), preprocessing_of(tokenizer).stride
    return args.frames or frames, args.stride or stride


def _synthetic_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("out", type=Path, help="output folder")
    add("--num-train", type=integer(0), default=256, help="training clips (default: 256)")
    add("--num-val", type=integer(0), default=64, help="validation clips (default: 64)")
    add("--frames", type=integer(), default=24, help="frames per clip (default: 24)")
    add("--size", type=integer(8), default=64, help="height and width in pixels (default: 64)")
    add("--fps", type=real(positive=True), default=12, help="frames per second (default: 12)")
    add("--plain", action="store_true", help="few kinds of scenes, which small models learn in minutes")
    add_seed(parser)


def _synthetic(args: argparse.Namespace) -> None:
    check_output_folder(args.out)
    names = ("num_train", "num_val", "frames", "size", "fps", "seed", "plain")
    print(write_synthetic(args.out, **{name: getattr(args, name) for name in names}, progress=True))


def _scenes_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("out", type=Path, help="output folder")
    add("--num-train", type=integer(0), default=2048, help="training clips (default: 2048)")
    add("--num-val", type=integer(0), default=256, help="held-out clips, of other combinations (default: 256)")
    add("--frames", type=integer(LEAST_FRAMES), default=25, help="frames per clip (default: 25)")
    add("--size", type=integer(32), default=64, help="height and width in pixels (default: 64)")
    add("--fps", type=real(positive=True), default=24, help="frames per second (default: 24)")
    add_seed(parser)


def _scenes(args: argparse.Namespace) -> None:
    check_output_folder(args.out)
    names = ("num_train", "num_val", "frames", "size", "fps", "seed")
    print(write_scenes(args.out, **{name: getattr(args, name) for name in names}, progress=True))


def _ucf101_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, help="folder of the clips")
    parser.add_argument("splits", type=Path, help="folder of classInd.txt, trainlist01.txt, testlist01.txt, ...")
    parser.add_argument("out", type=Path, help="output folder of the lists")
    parser.add_argument("--fold", type=int, choices=(1, 2, 3), default=1, help="official split (default: 1)")


def _import_ucf101(args: argparse.Namespace) -> None:
    for path in import_ucf101(args.root, args.splits, args.fold, args.out):
        print(f"{path}: {len(read_entries(path, args.root)[0])} clips, paths relative to {args.root}")


def _k600_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("csv", type=Path, help="annotations: label, youtube_id, time_start, time_end, split")
    parser.add_argument("root", type=Path, help="folder of the clips")
    parser.add_argument("out", type=Path, help="output folder of the lists")


def _import_k600(args: argparse.Namespace) -> None:
    for split, (written, lost) in import_k600(args.csv, args.root, args.out).items():
        print(f"{args.out / split}.txt: {written} clips, paths relative to {args.root}; {lost} clips not found")


def _index_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "tar files: paths, http(s) URLs or pipe: commands, with braces as in train-{000..099}.tar"
    add("shards", nargs="+", metavar="SHARDS", help=text)
    add("--out", type=Path, required=True, metavar="LIST", help="list file to write")
    add("--workers", type=integer(), default=8, metavar="N", help="shards read at a time (default: 8)")


def _index(args: argparse.Namespace) -> None:
    shards = expand_shards(args.shards)
    local = [Path(shard) for shard in shards if is_local(shard)]
    check_output(args.out, (".txt",), local)
    found = list(index_shards(shards, SUFFIXES, args.workers))
    if not found:
        raise ValueError(f"no videos in {len(shards)} shards, the first is {shards[0]}")
    bare = [clip.member for clip in found if clip.label is None]
    if 0 < len(bare) < len(found):
        raise ValueError(
            f"{len(bare)} of {len(found)} clips have no .cls file and no label in a .json file{some(bare)}"
        )
    base = args.out.parent
    write_list(args.out, ((relative_path(clip.member, base), clip.label) for clip in found))
    print(f"{args.out}: {len(found)} clips of {len(shards)} shards, with{'out' if bare else ''} labels")


def _folder_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of token shards")


def _tokens(args: argparse.Namespace) -> int:
    manifest, damaged = TokenManifest.read(args.folder), verify(args.folder, content=False)
    layout, missing = manifest.layout, len(manifest.missing(args.folder))
    segments = ", ".join(f"{s.length} of {s.vocab_size} ({s.name})" for s in layout.segments)
    mirrored = ", each also mirrored" if manifest.flips else ""
    clips = f"{manifest.num_clips} clips x {manifest.clips_per_video}{mirrored}"
    given = f", and those of the first {manifest.given_frames} frames" if manifest.given_frames else ""
    print(f"{args.folder}: {manifest.kind} with tokenizer {manifest.tokenizer_hash[:12]}")
    print(f"{manifest.num_rows} rows: {clips}; {manifest.num_classes} classes")
    print(f"{layout.length} ids a row, {layout.bits:.0f} bits{given}: {segments}")
    print(f"{manifest.num_frames} frames, stride {manifest.stride}, {manifest.resize}, short {manifest.short}")
    print(f"settings: {json.dumps(manifest.settings)}")
    print(f"{manifest.num_shards - missing - len(damaged)} of {manifest.num_shards} shards are written")
    return _report(damaged) or (1 if missing else 0)


def _verify(args: argparse.Namespace) -> int:
    manifest, damaged = TokenManifest.read(args.folder), verify(args.folder)
    missing = manifest.missing(args.folder)
    print(f"{args.folder}: {manifest.num_shards} shards, {len(missing)} missing, {len(damaged)} damaged")
    return _report(damaged) or (1 if missing else 0)


def _report(problems: list[str]) -> int:
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


COMMANDS = {
    "scan": Command("check the clips of a list", _scan_arguments, _scan),
    "synthetic": Command("write a dataset of synthetic clips with captions", _synthetic_arguments, _synthetic),
    "scenes": Command("write a dataset of scenes with captions and questions", _scenes_arguments, _scenes),
    "import-ucf101": Command("write lists from the official UCF-101 split files", _ucf101_arguments, _import_ucf101),
    "import-k600": Command("write lists from a Kinetics-600 annotation CSV", _k600_arguments, _import_k600),
    "index": Command("write the list of the clips in tar shards (WebDataset)", _index_arguments, _index),
    "tokens": Command("show the contents of a folder of token shards", _folder_argument, _tokens),
    "verify": Command("read all token shards of a folder and compare their SHA-256", _folder_argument, _verify),
}
