"""Command line: python -m sweettok.eval rfvd | reconstruct."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

POSITIONS = ("first", "center", "last")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sweettok.eval", description="Evaluate a tokenizer.")
    commands = parser.add_subparsers(dest="command", required=True)

    rfvd = commands.add_parser("rfvd", help="PSNR, SSIM, LPIPS, rFVD and codebook usage over a list of videos")
    rfvd.add_argument("--checkpoint", required=True, metavar="DIR", help="config.json and model.safetensors")
    rfvd.add_argument("--data", required=True, metavar="LIST_OR_FOLDER", help="list file, CSV or folder of videos")
    rfvd.add_argument("--root", metavar="DIR", help="folder that paths in the list start from")
    rfvd.add_argument("--limit", type=int, metavar="N", help="only the first N clips of the list")
    rfvd.add_argument("--i3d", metavar="PATH", help="i3d_pretrained_400.pt; without it rFVD is not measured")
    rfvd.add_argument("--lpips", metavar="PATH", help="LPIPS linear layers (v0.1 vgg.pth); without it no LPIPS")
    rfvd.add_argument("--vgg", metavar="PATH", help="VGG-16 for LPIPS (default: torchvision's cache)")
    rfvd.add_argument("--out", metavar="FILE", help="write the JSON report here")
    rfvd.add_argument("--batch-size", type=int, default=4)
    rfvd.add_argument("--workers", type=int, default=2, help="processes that read videos")

    look = commands.add_parser("reconstruct", help="what goes in, what comes out, and in which words")
    look.add_argument("videos", nargs="+", metavar="VIDEO")
    look.add_argument("--checkpoint", required=True, metavar="DIR", help="config.json and model.safetensors")
    look.add_argument("--out", required=True, metavar="DIR")
    look.add_argument("--position", choices=POSITIONS, default="center", help="which frames (default: center)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; problems of the input become one line on stderr and exit code 1."""
    args = _parser().parse_args(argv)
    try:
        return _rfvd(args) if args.command == "rfvd" else _reconstruct(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _rfvd(args: argparse.Namespace) -> int:
    from sweettok.eval.report import write_json
    from sweettok.eval.rfvd import run

    report = run(
        args.checkpoint, args.data, root=args.root, limit=args.limit, i3d=args.i3d, lpips=args.lpips, vgg=args.vgg,
        batch_size=args.batch_size, workers=args.workers,
    )  # fmt: skip
    print(_table(report))
    if args.out:
        write_json(args.out, report)
        print(f"report: {args.out}")
    return 0


def _table(report: dict[str, Any]) -> str:
    results, columns = report["results"], ("psnr", "ssim", "lpips", "rfvd")
    lines = [
        f"{results['num_clips']} clips, {results['ids_per_clip']} ids and {results['bits_per_clip']:.0f} bits each",
        f"{'':16}" + "".join(f"{name:>18}" for name in columns),
    ]
    for kind, scores in results["scores"].items():
        lines.append(f"{kind:16}" + "".join(f"{_cell(scores.get(name)):>18}" for name in columns))
    for name, use in results["usage"].items():
        lines.append(
            f"{name}: {use['used']} of {use['words']} words used ({use['used_fraction']:.1%}), "
            f"perplexity {use['perplexity']:.1f}"
        )
    if report["rfvd_refused"]:
        lines.append(f"rFVD not measured: {report['rfvd_refused']}")
    return "\n".join(lines + [f"note: {note}" for note in report["notes"]])


def _cell(score: dict[str, Any] | float | None) -> str:
    if score is None:
        return "-"
    if isinstance(score, float):
        return f"{score:.3f}"
    return f"{score['mean']:.3f}" + (f" +- {score['interval95']:.3f}" if score["interval95"] is not None else "")


def _reconstruct(args: argparse.Namespace) -> int:
    from sweettok.eval.visual import reconstruct

    for summary in reconstruct(args.videos, args.checkpoint, args.out, args.position):
        print(f"{summary['video']}: PSNR {summary['psnr']:.2f} dB, {summary['ids_per_clip']} ids -> {summary['files']}")
        for side, queries in summary["words"].items():
            print(f"  {side}: " + "; ".join(queries))
    return 0


if __name__ == "__main__":
    sys.exit(main())
