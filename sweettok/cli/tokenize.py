"""sweettok tokenize: encode a list of videos into token shards."""

from __future__ import annotations

import argparse
from dataclasses import replace

from sweettok.cli.options import POSITIONS, RESIZES, add_batch_size, add_checkpoint, add_workers, given, integer
from sweettok.data.lists import load_clips
from sweettok.data.reader import SHORT
from sweettok.distributed import join_processes
from sweettok.inference.tokenize import count_classes, tokenize
from sweettok.store import check_output_folder
from sweettok.tokenizer.model import SweetTok


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser, "a trained tokenizer, of stage 1 or stage 2")
    add = parser.add_argument
    add("--data", required=True, metavar="LIST_OR_FOLDER", help="list file, CSV or folder of videos")
    add("--out", required=True, metavar="DIR", help="folder of the shards; existing shards are kept")
    add("--root", metavar="DIR", help="folder that paths in the list are relative to")
    add("--classes", metavar="FILE|N", help="class names, one a line, or their number (default: as found)")
    add("--clips-per-video", type=integer(1), default=1, metavar="N", help="clips spread evenly over each video")
    add("--flips", action="store_true", help="also encode each clip mirrored left to right")
    add("--given-frames", type=integer(1), metavar="K", help="for frame prediction: also the ids of the first K frames")
    add("--resize", choices=RESIZES, help="how frames get the model's size (default: as in training)")
    add(
        "--position",
        choices=POSITIONS,
        help="where in the video a single clip is taken (default: as in training)",
    )
    add("--stride", type=integer(1), metavar="N", help="distance between a clip's frames (default: as in training)")
    add("--short", choices=SHORT, help="frames after the end of a short video (default: as in training)")
    add_batch_size(parser, 8)
    add_workers(parser)
    add("--rows-per-shard", type=integer(1), default=256, metavar="N", help="clips per file (default: 256)")
    add("--limit", type=integer(1), metavar="N", help="only the first N videos of the list")
    text = "no (default): float32; bf16: often faster, some ids differ; auto: the faster of both here, measured once"
    add("--precision", choices=("no", "bf16", "auto"), default="no", help=text)


def run(args: argparse.Namespace) -> None:
    check_output_folder(args.out, inputs=(args.data, args.root, args.checkpoint))
    tokenizer = SweetTok.from_pretrained(args.checkpoint)
    classes = int(args.classes) if args.classes is not None and args.classes.isdecimal() else args.classes
    clips = load_clips(args.data, args.root, classes)
    if clips.labels is None and classes is not None:
        raise ValueError(f"{args.data} has no labels: leave --classes out, or give a list with labels")
    num_classes = classes if isinstance(classes, int) else count_classes(clips)
    if args.limit is not None:
        clips = clips.subset(range(min(args.limit, len(clips))))
    manifest = tokenize(
        tokenizer,
        clips,
        args.out,
        num_classes=num_classes,
        preprocessing=replace(tokenizer.config.preprocessing, **given(args, "resize", "position", "stride", "short")),
        clips_per_video=args.clips_per_video,
        flips=args.flips,
        given_frames=args.given_frames,
        batch_size=args.batch_size,
        workers=args.workers,
        rows_per_shard=args.rows_per_shard,
        precision=args.precision,
    )
    if join_processes().is_main_process:
        missing = len(manifest.missing(args.out))
        others = f"; other processes are still writing {missing}" if missing else ""
        found = f", {manifest.settings['precision']}" if args.precision == "auto" else ""
        print(f"{args.out}: {manifest.num_rows} clips, {manifest.num_shards} shards{found}{others}")
