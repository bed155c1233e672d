"""Quality against bits: a tokenizer beside H.265 (x265) and AV1 (SVT-AV1) on the same clips.

    python scripts/bench/codecs.py --checkpoint DIR --data LIST [--limit N] --out FOLDER

Writes codecs.json and codecs.png. Every clip has the size and length of the tokenizer's clips. The codecs encode it as
one group of frames, tuned for PSNR at a slow preset, in 4:2:0, with constant quality (CRF) from high to their lowest.
Their bits are those of the coded frames: containers, start codes, parameter sets (HEVC: VPS, SPS, PPS, SEI; AV1:
sequence headers and temporal delimiters) are not counted. The tokenizer's bits are log2 of the size of each id's word
list. Scores compare bytes: PSNR of the clip, PSNR of the differences between frames ("motion"), and the perceptual
distance on EfficientNet-Lite0 (mean over frames; smaller is better).

The table has each codec's scores at the tokenizer's bits, interpolated for each clip in the logarithm of the bits.
Where the codec's lowest quality takes more bits than the tokenizer, the scores of that quality are taken, and the clip
is counted in the column "takes more".
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from sweettok.cli.main import run_reporting_errors
from sweettok.cli.options import integer
from sweettok.eval.compare import require_matplotlib
from sweettok.eval.metrics import frame_distance, motion_psnr, psnr
from sweettok.eval.pipeline import Options
from sweettok.eval.protocol import find_protocol
from sweettok.eval.reconstruction import reconstructed
from sweettok.eval.report import write_json
from sweettok.eval.sources import open_tokenizer
from sweettok.hub import model_folder
from sweettok.losses.weights import load_efficientnet
from sweettok.pixels import to_uint8
from sweettok.store import COMMENT, check_output, write_aside

SCORES = {"psnr": "PSNR, dB", "motion": "motion PSNR, dB", "distance": "perceptual distance"}
START_CODE = re.compile(rb"\x00\x00\x01")


def hevc_bytes(packet: bytes) -> int:
    """Bytes of the slices of an HEVC packet: NAL units of types below 32, without start codes."""
    units = [unit.rstrip(b"\x00") for unit in START_CODE.split(packet)[1:]]
    return sum(len(unit) for unit in units if unit[0] >> 1 & 63 < 32)


def av1_bytes(packet: bytes) -> int:
    """Bytes of the frames of an AV1 packet: all OBUs but sequence headers, delimiters, metadata, padding."""
    total, place = 0, 0
    while place < len(packet):
        first, start = packet[place], place
        place += 2 if first & 4 else 1  # with an extension byte
        size = shift = 0
        while True:  # the size: 7 bits per byte, low ones first
            byte = packet[place]
            place, size, shift = place + 1, size | (byte & 127) << shift, shift + 7
            if byte < 128:
                break
        place += size
        if first >> 3 & 15 not in (1, 2, 5, 15):
            total += place - start
    return total


@dataclass(frozen=True)
class Codec:
    """An encoder, its decoder, and the options of a quality."""

    title: str
    encoder: str
    decoder: str
    options: dict[str, str]
    qualities: tuple[int, ...]  # CRF, from the best to the lowest
    payload: Callable[[bytes], int]


CODECS = {
    "x265": Codec(
        "H.265 (x265)",
        "libx265",
        "hevc",
        {"preset": "slower", "tune": "psnr", "x265-params": "keyint=-1:scenecut=0:info=0:log-level=none:pools=none"},
        (16, 22, 28, 32, 36, 40, 44, 48, 51),
        hevc_bytes,
    ),
    "svtav1": Codec(
        "AV1 (SVT-AV1)",
        "libsvtav1",
        "libdav1d",
        {"preset": "2", "svtav1-params": "keyint=-1:tune=1:scd=0:lp=1"},
        (20, 28, 36, 42, 48, 52, 56, 60, 63),
        av1_bytes,
    ),
}


def code(video: Tensor, codec: Codec, quality: int) -> tuple[int, Tensor]:
    """Encode and decode a clip, uint8 (3, T, H, W) -> bits of its frames, and the decoded clip of the same shape."""
    encoder = av.CodecContext.create(codec.encoder, "w")
    encoder.height, encoder.width = video.shape[2:]
    encoder.pix_fmt, encoder.time_base, encoder.framerate = "yuv420p", Fraction(1, 25), 25
    encoder.thread_count, encoder.options = 1, {**codec.options, "crf": str(quality)}
    packets = []
    for number, array in enumerate(video.permute(1, 2, 3, 0).numpy()):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24").reformat(format="yuv420p")
        frame.pts = number
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoder = av.CodecContext.create(codec.decoder, "r")
    frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    frames.sort(key=lambda frame: frame.pts)
    shown = torch.from_numpy(np.stack([frame.to_ndarray(format="rgb24") for frame in frames])).permute(3, 0, 1, 2)
    if shown.shape != video.shape:
        raise RuntimeError(f"{codec.title} returned {tuple(shown.shape)} for a clip of {tuple(video.shape)}")
    return 8 * sum(codec.payload(bytes(packet)) for packet in packets), shown


def score(video: Tensor, shown: Tensor, network: nn.Module) -> dict[str, float]:
    """The scores of a clip, uint8 (3, T, H, W)."""
    pair = video[None], shown[None]
    return {
        "psnr": psnr(*pair).item(),
        "motion": motion_psnr(*pair).item(),
        "distance": frame_distance(network, *pair)[0],
    }


def at_bits(points: list[dict[str, float]], bits: float) -> dict[str, float]:
    """The scores of one clip, interpolated at `bits`; "over": whether the lowest quality takes more, and is scored."""
    points = sorted(points, key=lambda point: point["bits"])
    places = np.log([point["bits"] for point in points])
    found = {name: float(np.interp(np.log(bits), places, [point[name] for point in points])) for name in SCORES}
    return {**found, "bits": max(bits, points[0]["bits"]), "over": points[0]["bits"] > bits}


def clips_of(args: argparse.Namespace) -> tuple[Iterator[dict[str, Any]], Any]:
    """Batches with clips and their reconstructions, and the protocol by which clips are read."""
    changes = ["short=repeat"] + ([f"num_real={args.limit}"] if args.limit else [])
    sets, protocol = open_tokenizer(
        model_folder(args.checkpoint), args.data, find_protocol("exact", changes), args.root
    )
    return reconstructed(
        Options(batch_size=8, workers=0).batches(sets.real, "tokenizer"), sets.tokenizer, protocol
    ), protocol


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All scores, as JSON data."""
    network = load_efficientnet()
    batches, protocol = clips_of(args)
    videos, own, bits = [], [], 0.0
    for batch in batches:
        bits = batch["trip"].bits
        videos += list(batch["video"].cpu())
        own += [score(v, f, network) for v, f in zip(batch["video"].cpu(), to_uint8(batch["fake"]).cpu(), strict=True)]
    found: dict[str, Any] = {
        "tokenizer": {"bits": bits, **{name: fmean(clip[name] for clip in own) for name in SCORES}}
    }
    for name in args.codecs:
        codec, clips = CODECS[name], []
        for video in tqdm(videos, desc=codec.title, disable=None):
            coded = [(quality, *code(video, codec, quality)) for quality in codec.qualities]
            clips.append([{"crf": crf, "bits": size, **score(video, shown, network)} for crf, size, shown in coded])
        curve = [{key: fmean(p[key] for p in points) for key in points[0]} for points in zip(*clips, strict=True)]
        each = [at_bits(points, bits) for points in clips]
        same = {key: fmean(clip[key] for clip in each) for key in (*SCORES, "bits")} | {
            "over": sum(clip["over"] for clip in each)
        }
        about = {"title": codec.title, "options": codec.options, "curve": curve, "at_tokenizer_bits": same}
        found[name] = about
    return {
        "clips": len(videos),
        "protocol": protocol.to_dict(),
        "versions": dict(av.library_versions),
        "results": found,
    }


def table(report: dict[str, Any]) -> str:
    """The scores at the tokenizer's bits as a Markdown table."""
    results, count = report["results"], report["clips"]
    own = results["tokenizer"]
    lines = [
        f"| {count} clips at {own['bits']:.0f} bits | PSNR | motion | distance | bits | takes more |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, result in results.items():
        values = own if name == "tokenizer" else result["at_tokenizer_bits"]
        over = "" if name == "tokenizer" else f"{values['over']} of {count}"
        cells = f"{values['psnr']:.2f} | {values['motion']:.2f} | {values['distance']:.3f} | {values['bits']:.0f}"
        lines.append(f"| {result.get('title', name)} | {cells} | {over} |")
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """A panel for each score: a line for each codec, a star for the tokenizer."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(14, 4.5), layout="constrained")
    for axes, (score_name, title) in zip(figure.subplots(1, len(SCORES)), SCORES.items(), strict=True):
        for name, result in report["results"].items():
            if name == "tokenizer":
                axes.plot(result["bits"], result[score_name], "k*", markersize=14, label="tokenizer")
            else:
                points = result["curve"]
                values = [[point[key] for point in points] for key in ("bits", score_name)]
                axes.plot(*values, "o-", markersize=4, label=result["title"])
        axes.set(xscale="log", xlabel="bits per clip", ylabel=title)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.4)
        axes.legend()
    with write_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=90, metadata={"Comment": COMMENT})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="MODEL", help="the tokenizer")
    parser.add_argument("--data", required=True, metavar="LIST_OR_FOLDER", help="the clips")
    parser.add_argument("--root", metavar="DIR", help="folder of relative paths in the list")
    parser.add_argument("--limit", type=integer(1), metavar="N", help="only the first N clips")
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS))
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for codecs.json and codecs.png")
    args = parser.parse_args()
    require_matplotlib()
    av.logging.set_level(av.logging.ERROR)
    torch.manual_seed(0)
    report, picture = args.out / "codecs.json", args.out / "codecs.png"
    check_output(picture, (".png",))
    found = measure(args)
    write_json(report, found)
    plot(found, picture)
    print(table(found))
    print(f"{report}, {picture}")


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main))
