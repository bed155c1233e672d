"""The table of a tokenizer (and a generator) on held-out clips.

    python scripts/bench/mini.py --checkpoint DIR --data LIST [--limit N] --out FOLDER
                                 [--generator DIR --train LIST [--generated N]]

Writes mini.md and mini.json. For reconstructions and three baselines (the mean colour of each cell of the tokenizer's
latent grid, the clip's mean frame and its first frame, each kept exactly): PSNR of the clip, PSNR of the differences
between frames ("motion") and the perceptual distance on EfficientNet-Lite0, as mean and median over clips. For
reconstructions and generated clips: the Frechet distance on EfficientNet-Lite0 (protocol "efficientnet"), and as its
noise floor the distance between two halves of the held-out clips.

With a generator: clips of the held-out clips' classes. To tell copies, the distance of each to its nearest training
clip, beside that of held-out clips: root mean square difference of pixels in grey levels, and distance of features.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sweettok import Generator
from sweettok.cli.main import run_reporting_errors
from sweettok.cli.options import add_seed, given, integer, real
from sweettok.data.lists import ClipList, load_clips
from sweettok.eval.distance import cautions, measure
from sweettok.eval.features import EfficientNetFeatures, clip_features, detector_frames
from sweettok.eval.metrics import frame_distance, motion_psnr, psnr
from sweettok.eval.pipeline import Options
from sweettok.eval.protocol import Protocol, find_protocol
from sweettok.eval.reconstruction import baselines, block_means, reconstructed
from sweettok.eval.report import checkpoint_hashes, write_json
from sweettok.eval.sources import Sets, VideoClips, chosen, open_tokenizer
from sweettok.generator.config import SamplingConfig
from sweettok.hub import model_folder
from sweettok.inference.sample import check_models
from sweettok.losses.weights import load_efficientnet
from sweettok.pixels import to_float, to_uint8
from sweettok.store import write_aside

BATCH = 8
READING = Options(batch_size=BATCH, workers=0)
BOOTSTRAP = 100
SAMPLING = ("cfg_scale", "temperature", "top_k", "top_p")


@dataclass
class Clips:
    """Clips and their features: uint8 (N, 3, T, H, W), float64 (N, D)."""

    videos: list[Tensor] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)

    def add(self, video: Tensor, extractor: EfficientNetFeatures, protocol: Protocol, fake: bool = False) -> None:
        frames = detector_frames(video, protocol, fake)
        self.features += clip_features(extractor, frames, [""] * len(video))
        self.videos += list((video if video.dtype == torch.uint8 else to_uint8(video)).cpu())

    @property
    def matrix(self) -> Tensor:
        return torch.from_numpy(np.stack(self.features))


def nearest(clips: Clips, training: Clips) -> dict[str, dict[str, float]]:
    """Distances to the nearest training clip: pixels (root mean square, grey levels) and features (Euclidean)."""
    sides = [torch.stack(side.videos).flatten(1).float() for side in (clips, training)]
    scale = sides[0].shape[1] ** 0.5
    pixels = torch.cat([torch.cdist(part, sides[1]).amin(1) / scale for part in sides[0].split(BATCH)])
    features = torch.cdist(clips.matrix, training.matrix).amin(1)
    found = {"pixels": pixels, "features": features}
    return {name: {"median": value.median().item(), "least": value.min().item()} for name, value in found.items()}


def reconstructions(
    sets: Sets, protocol: Protocol, extractor: EfficientNetFeatures
) -> tuple[dict[str, Any], Clips, list[str]]:
    """Scores of the tokenizer and the baselines, the held-out clips, and notes on the Frechet distance."""
    network, held_out, own = load_efficientnet(), Clips(), Clips()
    config = sets.tokenizer.config
    patches = getattr(config, "proxy", config).patches
    columns: dict[str, dict[str, list[float]]] = {}
    bits = 0.0
    for batch in reconstructed(READING.batches(sets.real, "reconstructions"), sets.tokenizer, protocol):
        video, bits = batch["video"], batch["trip"].bits
        held_out.add(video, extractor, protocol)
        own.add(batch["fake"], extractor, protocol, fake=True)
        outputs = {"tokenizer": batch["fake"], "block means": block_means(to_float(video), *patches)}
        for name, output in (outputs | baselines(to_float(video))).items():
            shown = to_uint8(output)
            scores = {"psnr": psnr(video, shown).tolist(), "motion": motion_psnr(video, shown).tolist()}
            scores["distance"] = frame_distance(network, video, shown)
            for score, values in scores.items():
                columns.setdefault(name, {}).setdefault(score, []).extend(values)
    summary = {
        name: {score: {"mean": fmean(values), "median": median(values)} for score, values in scores.items()}
        for name, scores in columns.items()
    }
    over = [a - b for a, b in zip(columns["tokenizer"]["psnr"], columns["block means"]["psnr"], strict=True)]
    result = {"clips": len(over), "bits_per_clip": bits, "scores": summary, "psnr_over_block_means": median(over)}
    result["frechet_efficientnet"] = measure(held_out.matrix, own.matrix, protocol, BOOTSTRAP)
    return result, held_out, cautions(len(over), len(over), extractor.width)


def generation(
    args: argparse.Namespace,
    generator: Generator,
    sets: Sets,
    protocol: Protocol,
    extractor: EfficientNetFeatures,
    held_out: Clips,
) -> dict[str, Any]:
    """The Frechet distance of generated to held-out clips, and distances to the nearest training clips."""
    how = given(args, *SAMPLING)
    conditions = labels(sets.real.list, args.generated, protocol) if generator.config.num_classes else None
    count = len(conditions) if conditions else args.generated or len(sets.real)
    generated, training = Clips(), Clips()
    for start in tqdm(range(0, count, BATCH), desc="generated", disable=None):
        rows = range(start, min(start + BATCH, count))
        condition = {"labels": [conditions[row] for row in rows]} if conditions else {"num_samples": len(rows)}
        ids = generator.sample(**condition, indices=rows, seed=args.seed, **how)
        generated.add(sets.tokenizer.decode(ids).clamp(-0.5, 0.5), extractor, protocol, fake=True)
    for batch in READING.batches(VideoClips(load_clips(args.train, args.root), protocol), "training clips"):
        training.add(batch["video"], extractor, protocol)
    return {
        "clips": count,
        "settings": {**how, "seed": args.seed},
        "frechet_efficientnet": measure(held_out.matrix, generated.matrix, protocol.filled(paired=False), BOOTSTRAP),
        "nearest_training_clip": {
            "training_clips": len(training.videos),
            "generated": nearest(generated, training),
            "held_out": nearest(held_out, training),
        },
    }


def labels(clips: ClipList, count: int | None, protocol: Protocol) -> Sequence[int]:
    """Classes of the held-out clips, of a random part, or repeated."""
    if clips.labels is None:
        raise ValueError("the generator has classes, but the list of held-out clips has no labels")
    if count is None or count > len(clips):
        return [clips.labels[i % len(clips)] for i in range(count or len(clips))]
    return [clips.labels[i] for i in chosen(len(clips), count, protocol.filled(selection="seeded"))]


def page(found: dict[str, Any]) -> str:
    """The report as Markdown."""
    own = found["reconstruction"]
    head = f"{own['clips']} clips, {own['bits_per_clip']:.0f} bits each"
    lines = [f"| {head} | PSNR: mean, median | motion | perceptual distance |", "|---|---:|---:|---:|"]
    for name, scores in own["scores"].items():
        cells = (f"{s['mean']:.{d}f}, {s['median']:.{d}f}" for s, d in zip(scores.values(), (2, 2, 3), strict=True))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"Median PSNR over block means: {own['psnr_over_block_means']:+.2f} dB.", ""]
    lines += ["| Frechet distance (EfficientNet) | value | 95% interval | two halves of held-out clips |"]
    lines += ["|---|---:|---:|---:|"]
    for name in ("reconstruction", "generation"):
        if name in found:
            distance = found[name]["frechet_efficientnet"]
            low, high = distance["bootstrap"]["interval95"]
            floor = f"{distance['noise_floor']['real_to_real']:.3f}" if distance["noise_floor"] else "-"
            cells = f"{distance['value']:.3f} | {low:.3f} to {high:.3f} | {floor}"
            lines.append(f"| {name}, {found[name]['clips']} clips | {cells} |")
    if "generation" in found:
        near = found["generation"]["nearest_training_clip"]
        lines += ["", f"| nearest of {near['training_clips']} training clips | pixels: median, least | features |"]
        lines += ["|---|---:|---:|"]
        for name in ("generated", "held_out"):
            cells = (f"{value['median']:.2f}, {value['least']:.2f}" for value in near[name].values())
            lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    lines += ["", f"Protocol {found['protocol']['name']} ({found['protocol_hash'][:12]})."]
    return "\n".join([*lines, *(f"Note: {note}." for note in found["notes"])]) + "\n"


@torch.no_grad()
def run(args: argparse.Namespace) -> dict[str, Any]:
    changes = ["short=repeat"] + ([f"num_real={args.limit}"] if args.limit else [])
    protocol = find_protocol("efficientnet", changes)
    checkpoint = model_folder(args.checkpoint)
    extractor, protocol, refused = Options().open_detector(protocol.filled(frames=2), 2)
    if refused:
        raise ValueError(refused)
    sets, protocol = open_tokenizer(checkpoint, args.data, protocol.filled(frames=None), args.root)
    if args.generator:
        generator, how = (
            Generator.from_pretrained(args.generator),
            SamplingConfig(**given(args, *SAMPLING)),
        )
        check_models(args.generator, generator, args.checkpoint, sets.tokenizer, how)
    own, held_out, notes = reconstructions(sets, protocol, extractor)
    found = {"reconstruction": own, "weights": {"tokenizer": checkpoint_hashes(checkpoint)}, "data": sets.about}
    if args.generator:
        found["generation"] = generation(args, generator, sets, protocol, extractor, held_out)
        found["weights"]["generator"] = checkpoint_hashes(model_folder(args.generator, "Generator"))
    return {**found, "protocol": protocol.to_dict(), "protocol_hash": protocol.hash, "notes": notes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="MODEL", help="the tokenizer")
    parser.add_argument("--data", required=True, metavar="LIST_OR_FOLDER", help="held-out clips")
    parser.add_argument("--root", metavar="DIR", help="folder of relative paths in the lists")
    parser.add_argument("--limit", type=integer(1), metavar="N", help="only the first N held-out clips")
    parser.add_argument("--generator", metavar="MODEL", help="a generator of the tokenizer's ids; needs --train")
    parser.add_argument("--train", metavar="LIST_OR_FOLDER", help="the clips that it was trained on")
    parser.add_argument("--generated", type=integer(2), metavar="N", help="generated clips (default: as held-out ones)")
    parser.add_argument("--cfg-scale", type=real())
    parser.add_argument("--temperature", type=real())
    parser.add_argument("--top-k", type=integer(1))
    parser.add_argument("--top-p", type=real(positive=True))
    add_seed(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for mini.md and mini.json")
    args = parser.parse_args()
    if bool(args.generator) != bool(args.train):
        raise ValueError("give --generator and --train, or neither")
    found = run(args)
    write_json(args.out / "mini.json", found)
    text = page(found)
    with write_aside(args.out / "mini.md") as aside:
        aside.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main))
