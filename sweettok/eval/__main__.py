"""Command line: python -m sweettok.eval rfvd | gfvd | compare | table | reconstruct."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from sweettok.commands import report_errors
from sweettok.data.reader import POSITIONS
from sweettok.data.resize import RESIZES as POLICIES
from sweettok.eval.features import I3D_FILE
from sweettok.eval.presets import DEFAULT, PRESETS, find_protocol
from sweettok.eval.protocol import Protocol
from sweettok.hub import local


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sweettok.eval", description="Evaluate a tokenizer.")
    commands = parser.add_subparsers(dest="command", required=True)

    rfvd = commands.add_parser("rfvd", help="PSNR, SSIM, LPIPS, rFVD and codebook usage over a list of videos")
    rfvd.add_argument("--checkpoint", metavar="MODEL", help="the tokenizer: a folder, or user/name on the hub")
    rfvd.add_argument("--data", metavar="LIST_OR_FOLDER", help="list file, CSV or folder of videos")
    rfvd.add_argument("--originals", metavar="DIR", help="instead of both: a folder of videos ...")
    rfvd.add_argument("--reconstructions", metavar="DIR", help="... and of their reconstructions, of the same names")
    rfvd.add_argument("--lpips", metavar="PATH", help="LPIPS linear layers (v0.1 vgg.pth); without it no LPIPS")
    rfvd.add_argument("--vgg", metavar="PATH", help="VGG-16 for LPIPS (default: torchvision's cache)")
    _add_measuring(rfvd)

    gfvd = commands.add_parser("gfvd", help="FVD of generated clips: tokens that a tokenizer decodes, or videos")
    gfvd.add_argument("--fake", required=True, metavar="DIR", help="folder of generated tokens, or of videos")
    gfvd.add_argument("--real", required=True, metavar="LIST_OR_FOLDER", help="list file, CSV or folder of videos")
    gfvd.add_argument("--checkpoint", metavar="MODEL", help="the tokenizer that decodes generated tokens")
    _add_measuring(gfvd)

    beside = commands.add_parser("compare", help="two reports beside each other; refused when their protocols differ")
    beside.add_argument("reports", nargs=2, metavar="REPORT")
    beside.add_argument("--force", action="store_true", help="show the fields that differ beside the numbers")

    results = commands.add_parser("table", help="all reports of a folder as a table, and as a plot")
    results.add_argument("folder", metavar="DIR")
    results.add_argument("--plot", metavar="FILE", help="PNG of FVD or PSNR against bits (default: DIR/table.png)")

    look = commands.add_parser("reconstruct", help="what goes in, what comes out, and in which words")
    look.add_argument("videos", nargs="+", metavar="VIDEO")
    look.add_argument("--checkpoint", required=True, metavar="MODEL", help="a folder, or user/name on the hub")
    look.add_argument("--out", required=True, metavar="DIR")
    look.add_argument("--position", choices=POSITIONS[:3], default="center", help="which frames, unless --whole "
                      "(default: center)")  # fmt: skip
    look.add_argument("--aspect", choices=POLICIES, default="stretch", help="how frames become the tokenizer's size "
                      "(default: stretch, as protocols measure)")  # fmt: skip
    look.add_argument("--whole", action="store_true", help="all of each video, in overlapping clips")
    return parser


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    """Options of all commands that measure."""
    parser.add_argument("--protocol", default=DEFAULT, metavar="NAME", help=f"one of {', '.join(PRESETS)}")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change the protocol")
    parser.add_argument("--i3d", metavar="PATH", help=f"{I3D_FILE}; without it there is no FVD")
    parser.add_argument("--root", metavar="DIR", help="folder that paths in the list start from")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N clips")
    parser.add_argument("--bootstrap", type=int, default=0, metavar="K", help="interval of the FVD from K redrawn sets")
    parser.add_argument("--cache", metavar="DIR", help="keep statistics of real clips here, and use those kept")
    parser.add_argument("--out", metavar="FILE", help="write the JSON report here")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2, help="processes that read videos, for each device")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; problems of the input become one line on stderr and exit code 1."""
    args = _parser().parse_args(argv)

    def work() -> int:
        if getattr(args, "checkpoint", None) is not None:
            args.checkpoint = local(args.checkpoint)
        return COMMANDS[args.command](args)

    return report_errors(work)


def _rfvd(args: argparse.Namespace) -> int:
    from sweettok.eval.rfvd import open_folders, open_tokenizer, run

    protocol = _protocol(args)
    given = [name for name in ("checkpoint", "data", "originals", "reconstructions") if getattr(args, name) is not None]
    if given == ["checkpoint", "data"]:
        source, protocol = open_tokenizer(args.checkpoint, args.data, protocol, args.root)
    elif given == ["originals", "reconstructions"] and args.root is None:
        source, protocol = open_folders(args.originals, args.reconstructions, protocol)
    else:
        raise ValueError("give --checkpoint and --data (and --root), or --originals and --reconstructions")
    return _finish(run(source, protocol, lpips=args.lpips, vgg=args.vgg, **_options(args)), args.out)


def _gfvd(args: argparse.Namespace) -> int:
    from sweettok.eval.gfvd import run

    report = run(args.fake, args.real, _protocol(args), checkpoint=args.checkpoint, root=args.root, **_options(args))
    return _finish(report, args.out)


def _protocol(args: argparse.Namespace) -> Protocol:
    """The protocol that the arguments name, change and limit."""
    protocol = find_protocol(args.protocol, args.set)
    if args.limit is None:
        return protocol
    if args.limit < 1:
        raise ValueError(f"limit must be at least 1, got {args.limit}")
    return protocol.filled(selection="first", num_real=args.limit, num_fake=args.limit)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What is not of the protocol."""
    for name, least in (("batch_size", 1), ("workers", 0), ("bootstrap", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"{name.replace('_', ' ')} must be at least {least}, got {getattr(args, name)}")
    names = ("i3d", "bootstrap", "cache", "batch_size", "workers")
    return {name: getattr(args, name) for name in names}


def _finish(report: dict[str, Any], out: str | None) -> int:
    """Print a report and write it, on the main process."""
    from sweettok.distributed import join_processes
    from sweettok.eval.report import write_json
    from sweettok.eval.summary import summary

    state = join_processes()
    if state.is_main_process:
        print(summary(report))
        if out:
            write_json(out, report)
            print(f"report: {out}")
    state.destroy_process_group()
    return 0


def _compare(args: argparse.Namespace) -> int:
    from sweettok.eval.compare import compare

    print(compare(*args.reports, force=args.force))
    return 0


def _table(args: argparse.Namespace) -> int:
    from sweettok.eval.compare import table

    print(table(args.folder, args.plot or f"{args.folder}/table.png"))
    return 0


def _reconstruct(args: argparse.Namespace) -> int:
    from sweettok.eval.visual import reconstruct

    for summary in reconstruct(args.videos, args.checkpoint, args.out, args.position, args.whole, args.aspect):
        told = f"{summary['ids_per_clip']} ids"
        if args.whole:
            told = f"{summary['clips']} clips of {told}, seams {summary['seams']:+.2f} grey levels"
        print(f"{summary['video']}: PSNR {summary['psnr']:.2f} dB, {told} -> {summary['files']}")
        for side, queries in summary["words"].items():
            if queries:  # an image says nothing of motion
                print(f"  {side}: " + "; ".join(queries))
    return 0


COMMANDS = {"rfvd": _rfvd, "gfvd": _gfvd, "compare": _compare, "table": _table, "reconstruct": _reconstruct}

if __name__ == "__main__":
    sys.exit(main())
