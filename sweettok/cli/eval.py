"""`sweettok eval`: measure reconstructions, generated clips and words; compare reports."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweettok.cli import alignment, options
from sweettok.cli.main import Command
from sweettok.data.synonyms import ATTRIBUTES
from sweettok.distributed import from_main, join_processes, together
from sweettok.eval.compare import compare, require_matplotlib, table
from sweettok.eval.features import I3D_FILE
from sweettok.eval.gfvd import run as run_gfvd
from sweettok.eval.motion import generated_motion, motion_summary, reconstructed_motion
from sweettok.eval.pipeline import Options
from sweettok.eval.probes import EPISODES, probe, probe_summary
from sweettok.eval.protocol import DEFAULT, PREPROCESSING, PRESETS, Protocol, find_protocol
from sweettok.eval.report import has_kind, is_report, summary, write_json
from sweettok.eval.rfvd import run as run_rfvd
from sweettok.eval.sources import open_folders, open_generated, open_tokenizer
from sweettok.eval.tvalign import COMPARABLE, compare_reports
from sweettok.eval.visual import reconstruct
from sweettok.hub import model_folder
from sweettok.store import check_output


def add_rfvd(parser: argparse.ArgumentParser) -> None:
    options.add_checkpoint(parser, required=False)
    parser.add_argument("--data", metavar="LIST_OR_FOLDER", help="list file, CSV or folder of videos")
    parser.add_argument("--originals", metavar="DIR", help="instead of --checkpoint and --data: folder of videos ...")
    parser.add_argument("--reconstructions", metavar="DIR", help="... and of reconstructions with the same names")
    parser.add_argument("--lpips", metavar="PATH", help="LPIPS linear layers (v0.1 vgg.pth); needed for LPIPS")
    parser.add_argument("--vgg", metavar="PATH", help="VGG-16 for LPIPS (default: torchvision's cache)")
    _add_measuring(parser)


def add_gfvd(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fake", required=True, metavar="DIR", help="folder of generated tokens, or of videos")
    parser.add_argument("--real", required=True, metavar="LIST_OR_FOLDER", help="list file, CSV or folder of videos")
    options.add_checkpoint(parser, "the tokenizer that decodes generated tokens", required=False)
    _add_measuring(parser)


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    protocols = f"one of {', '.join(PRESETS)} (default: {DEFAULT})"
    parser.add_argument("--protocol", default=DEFAULT, metavar="NAME", help=protocols)
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of the protocol"
    )
    group = parser.add_argument_group("clips (default: as in the protocol, or as the model was trained)")
    group.add_argument("--resize", choices=options.RESIZES, help="how frames are resized")
    group.add_argument("--position", choices=options.POSITIONS, help="position of the clip in the video")
    group.add_argument("--stride", type=options.integer(1), metavar="N", help="distance between the frames of a clip")
    parser.add_argument("--i3d", metavar="PATH", help=f"{I3D_FILE}; needed for FVD, not with --protocol efficientnet")
    parser.add_argument("--root", metavar="DIR", help="folder of relative paths in the list")
    parser.add_argument("--limit", type=options.integer(1), metavar="N", help="only the first N clips")
    repeats = {"type": options.integer(0), "default": 0, "metavar": "K"}
    parser.add_argument("--bootstrap", help="95%% interval of the distance from K (at least 20) resamples", **repeats)
    parser.add_argument("--cache", metavar="DIR", help="folder to cache the features of real clips in")
    parser.add_argument("--out", metavar="FILE", help="file for the JSON report")
    options.add_batch_size(parser, 4)
    options.add_workers(parser)


def add_motion(parser: argparse.ArgumentParser) -> None:
    options.add_checkpoint(parser)
    parser.add_argument("--data", required=True, metavar="LIST", help="list of held-out synthetic clips")
    parser.add_argument("--fake", metavar="DIR", help="generated tokens to track, instead of reconstructions of --data")
    parser.add_argument("--train", metavar="LIST", help="with --fake: list of the training clips, to find copies")
    parser.add_argument("--out", metavar="FILE", help="file for the JSON report")
    options.add_batch_size(parser, 8)


def add_probe(parser: argparse.ArgumentParser) -> None:
    options.add_checkpoint(parser)
    parser.add_argument("--train", required=True, metavar="LIST", help="list of labelled training clips")
    parser.add_argument("--data", required=True, metavar="LIST", help="list of labelled held-out clips")
    parser.add_argument("--proxy", metavar="DIR", help="proxy tokenizer, to compare with its codes")
    captions = "instead of the labels: an attribute of synthetic clips, from captions.jsonl beside each list"
    parser.add_argument("--attribute", choices=ATTRIBUTES, help=captions)
    parser.add_argument("--out", metavar="FILE", help="file for the JSON report")
    options.add_batch_size(parser, 8)
    group = parser.add_argument_group("few-shot tasks, with examples from --train and queries from --data")
    options.add_episodes(group, EPISODES)


def add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reports", nargs=2, metavar="REPORT")
    parser.add_argument(
        "--force", action="store_true", help="compare reports of different protocols, and show the differences"
    )


def add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--plot", metavar="FILE", help="PNG of FVD or PSNR against bits (default: DIR/table.png)")


def add_reconstruct(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", nargs="+", metavar="VIDEO")
    options.add_checkpoint(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--whole", action="store_true", help="encode whole videos, in overlapping clips")
    options.add_preprocessing(parser)


def rfvd(args: argparse.Namespace) -> None:
    protocol, measuring = _protocol(args), _options(args)
    inputs = ("checkpoint", "data", "originals", "reconstructions")
    given = [name for name in inputs if getattr(args, name) is not None]
    if given not in (["checkpoint", "data"], ["originals", "reconstructions"]) or (args.root and "data" not in given):
        raise ValueError("give --checkpoint and --data (and --root), or --originals and --reconstructions")
    _check_out(args, *inputs, "root", "lpips", "vgg", "i3d")

    def open_source():
        if args.checkpoint is None:
            return open_folders(args.originals, args.reconstructions, protocol)
        return open_tokenizer(model_folder(args.checkpoint), args.data, protocol, args.root)

    _finish(run_rfvd(*together(open_source), measuring, args.lpips, args.vgg), args.out)


def gfvd(args: argparse.Namespace) -> None:
    protocol, measuring = _protocol(args), _options(args)
    _check_out(args, "fake", "real", "checkpoint", "root", "i3d")

    def open_source():
        checkpoint = model_folder(args.checkpoint) if args.checkpoint is not None else None
        return open_generated(args.fake, args.real, protocol, checkpoint, args.root)

    _finish(run_gfvd(*together(open_source), measuring), args.out)


def _protocol(args: argparse.Namespace) -> Protocol:
    changes = [f"{name}={getattr(args, name)}" for name in PREPROCESSING if getattr(args, name) is not None]
    protocol = find_protocol(args.protocol, [*args.set, *changes])
    if args.limit is None:
        return protocol
    return protocol.filled(selection="first", num_real=args.limit, num_fake=args.limit)


def _check_out(args: argparse.Namespace, *inputs: str) -> None:
    if args.out:
        join_processes()
        sources = [getattr(args, name) for name in inputs]
        from_main(lambda: check_output(args.out, inputs=sources, owned=is_report))


def _options(args: argparse.Namespace) -> Options:
    return Options(args.i3d, args.bootstrap, args.cache, args.batch_size, args.workers)


def _finish(report: dict[str, Any], out: str | None) -> None:
    """Print and write a report on the main process."""
    state = join_processes()
    if state.is_main_process:
        print(summary(report))
        if out:
            write_json(out, report)
            print(f"report: {out}")
    state.destroy_process_group()


def motion(args: argparse.Namespace) -> None:
    if (args.fake is None) != (args.train is None):
        raise ValueError("give --fake and --train together, or neither")
    checkpoint = model_folder(args.checkpoint)
    if args.out:
        inputs = [path for path in (args.checkpoint, args.data, args.fake, args.train) if path]
        check_output(args.out, inputs=inputs, owned=lambda path: has_kind(path, "motion"))
    if args.fake is None:
        report = reconstructed_motion(checkpoint, args.data, args.batch_size)
    else:
        report = generated_motion(args.fake, checkpoint, args.data, args.train, args.batch_size)
    print(motion_summary(report))
    if args.out:
        write_json(args.out, report)


def run_probe(args: argparse.Namespace) -> None:
    if args.out:
        inputs = [path for path in (args.checkpoint, args.train, args.data, args.proxy) if path]
        check_output(args.out, inputs=inputs, owned=lambda path: has_kind(path, "probe"))
    proxy = model_folder(args.proxy, "ProxyTokenizer") if args.proxy else None
    episodes = replace(EPISODES, **options.given(args, *options.EPISODES))
    checkpoint = model_folder(args.checkpoint, "SweetTok")
    report = probe(checkpoint, args.train, args.data, proxy, args.attribute, episodes, args.batch_size)
    print(probe_summary(report))
    if args.out:
        write_json(args.out, report)


def run_compare(args: argparse.Namespace) -> None:
    answered = all(any(has_kind(Path(report), kind) for kind in COMPARABLE) for report in args.reports)
    print((compare_reports if answered else compare)(*args.reports, force=args.force))


def run_table(args: argparse.Namespace) -> None:
    if not Path(args.folder).is_dir():
        raise FileNotFoundError(f"no folder {args.folder}")
    plot = args.plot or f"{args.folder}/table.png"
    require_matplotlib()
    check_output(plot, (".png",))
    print(table(args.folder, plot))


def run_reconstruct(args: argparse.Namespace) -> None:
    changes = options.preprocessing_changes(args)
    for facts in reconstruct(args.videos, model_folder(args.checkpoint), args.out, args.whole, **changes):
        clips = f"{facts['ids_per_clip']} ids"
        if args.whole:
            clips = f"{facts['clips']} clips of {clips}, seams {facts['seams']:+.2f} grey levels"
        print(f"{facts['video']}: PSNR {facts['psnr']:.2f} dB, {clips} -> {facts['files']}")
        if missing := facts.get("missing_frames"):
            filled = "repeat the last one" if facts["preprocessing"]["short"] == "repeat" else "are black"
            print(f"  note: the video is too short: {missing} of {facts['clip']['frames']} frames of the clip {filled}")
        for branch, queries in facts["words"].items():
            if queries:  # images have no temporal queries
                print(f"  {branch}: " + "; ".join(queries))


COMMANDS = {
    "rfvd": Command(
        "measure PSNR, SSIM, LPIPS, rFVD and codebook usage over a list of videos",
        add_rfvd,
        rfvd,
    ),
    "gfvd": Command(
        "measure the FVD of generated clips: tokens that a tokenizer decodes, or videos",
        add_gfvd,
        gfvd,
    ),
    "motion": Command("track objects of synthetic clips in reconstructed or generated clips", add_motion, motion),
    "probe": Command("classify held-out clips by a tokenizer's words and features", add_probe, run_probe),
    **alignment.COMMANDS,
    "compare": Command("compare two reports of the same protocol", add_compare, run_compare),
    "table": Command("show all reports of a folder as a table and a plot", add_table, run_table),
    "reconstruct": Command("encode and decode videos, and compare them side by side", add_reconstruct, run_reconstruct),
}
