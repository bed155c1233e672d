"""Objects and motions of synthetic clips in reconstructions and generated clips, found by the rule-based tracker."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sweettok.data.lists import ClipList, load_clips
from sweettok.data.synthetic import CLASSES
from sweettok.data.tokens import TokenDataset
from sweettok.eval.metrics import mean_with_interval
from sweettok.eval.report import checkpoint_hashes
from sweettok.eval.tokenizers import clip_batches, load_tokenizer, round_trip, small_pixels
from sweettok.eval.tracker import Track, track, wrapped
from sweettok.pixels import to_uint8

NEAR = 1.5  # pixels: an object this near to its original is at its position
FORMAT = 1


@dataclass(frozen=True)
class ObjectMatch:
    """The object of a reconstruction compared with that of its original.

    Attributes:
        errors: (T,) distance of both centres in pixels; infinite where the reconstruction has no object of its colour.
        color: whether the colours are equal.
        motion: the class of the motion in the reconstruction; None if there is no object.
    """

    errors: np.ndarray
    color: bool
    motion: str | None

    @property
    def near(self) -> float:
        """Fraction of the frames whose object is within `NEAR` pixels of the original's."""
        return float((self.errors <= NEAR).mean())


def match(original: Track, shown: Track) -> ObjectMatch:
    """Compare the tracks of two clips of one shape."""
    offsets = wrapped(shown.centers - original.centers, original.size)
    errors = np.nan_to_num(np.linalg.norm(offsets, axis=1), nan=np.inf)
    return ObjectMatch(errors, shown.color == original.color, shown.motion())


@torch.no_grad()
def reconstructed_motion(checkpoint: str | Path, data: str | Path, batch_size: int = 8) -> dict[str, Any]:
    """Track the object in synthetic clips and in their reconstructions.

    Args:
        checkpoint: a tokenizer's folder. data: list of labelled synthetic clips.

    Returns:
        A report: of all clips, the fractions of frames with the object within NEAR pixels, of right colours, of right
        motion classes in the reconstructions and in the originals; and the same of each clip.
    """
    tokenizer, clips = load_tokenizer(checkpoint), _labelled(data)
    rows = []
    for start, videos in clip_batches(tokenizer, clips, batch_size):
        shown = to_uint8(round_trip(tokenizer, videos).video)
        for number, (video, fake) in enumerate(zip(videos, shown, strict=True), start):
            original, name = track(video), CLASSES[clips.labels[number]]
            found = match(original, track(fake))
            row = {"near": found.near, "color": found.color, "found": found.motion, "motion": found.motion == name}
            rows.append({"key": clips.keys[number], "class": name, **row, "original": original.motion() == name})
    means = {name: mean_with_interval([float(row[name]) for row in rows]) for name in ("near", "color", "motion")}
    means["motion of originals"] = mean_with_interval([float(row["original"]) for row in rows])
    return _report("reconstructed motion", checkpoint, {"scores": means, "clips": rows, "near_pixels": NEAR}, data)


@torch.no_grad()
def generated_motion(
    folder: str | Path, checkpoint: str | Path, data: str | Path, training: str | Path, batch_size: int = 8
) -> dict[str, Any]:
    """Track the object in generated clips, whose class was asked for.

    Args:
        folder: token shards of `sweettok sample` with classes. checkpoint: the tokenizer that decodes them.
        data: list of held-out clips. training: list of the clips that the models were trained on.

    Returns:
        A report: the fraction of clips with the class that was asked for, a table of classes, and the root mean squared
        difference to the nearest training clip of generated and of reconstructed held-out clips, in grey levels at
        16x16 pixels. Copies of training clips would be nearer than held-out clips are.
    """
    tokenizer, tokens = load_tokenizer(checkpoint), TokenDataset(folder)
    tokens.check_tokenizer(tokenizer.ids_hash())
    if tokens.labels is None:
        raise ValueError(f"{folder} holds clips without classes: sample with --per-class or --classes")
    rows, small = [], []
    for start in range(0, len(tokens), batch_size):
        items = [tokens[row] for row in range(start, min(start + batch_size, len(tokens)))]
        shown = to_uint8(tokenizer.decode(torch.stack([item["ids"] for item in items])))
        small.append(small_pixels(shown))
        for item, fake in zip(items, shown, strict=True):
            name, found = CLASSES[int(item["label"])], track(fake).motion()
            rows.append({"key": item["key"], "class": name, "found": found, "motion": found == name})
    held = [
        small_pixels(to_uint8(round_trip(tokenizer, v).video)) for _, v in clip_batches(tokenizer, _labelled(data), 8)
    ]
    seen = torch.cat([small_pixels(videos) for _, videos in clip_batches(tokenizer, _labelled(training), 8)])
    results = {
        "scores": {"motion": mean_with_interval([float(row["motion"]) for row in rows])},
        "classes": {name: Counter(str(row["found"]) for row in rows if row["class"] == name) for name in CLASSES},
        "clips": rows,
        "nearest_training_clip": {
            name: float(_nearest(torch.cat(group), seen).median())
            for name, group in (("generated", small), ("held-out", held))
        },
    }
    return _report("generated motion", checkpoint, results, data)


def _labelled(data: str | Path) -> ClipList:
    clips = load_clips(data)
    if clips.labels is None or max(clips.labels) >= len(CLASSES):
        raise ValueError(f"{data} is no list of synthetic clips, which have {len(CLASSES)} classes")
    return clips


def _nearest(some: Tensor, others: Tensor) -> Tensor:
    """(B, N), (M, N) -> (B,) root mean squared difference to the nearest row of `others`."""
    return torch.cdist(some, others).min(1).values / some.shape[1] ** 0.5


def _report(kind: str, checkpoint: str | Path, results: dict[str, Any], data: str | Path) -> dict[str, Any]:
    weights = {"tokenizer": checkpoint_hashes(checkpoint)}
    return {"format": FORMAT, "kind": kind, "data": str(data), "weights": weights, "results": results}


def motion_summary(report: dict[str, Any]) -> str:
    """The results of a report as lines of text."""
    results = report["results"]
    count = len(results["clips"])
    lines = [f"{report['kind']}, {count} clips"]
    names = {
        "near": f"object within {NEAR} pixels of the original's, of all frames",
        "color": "colour of the object as in the original",
        "motion": "motion class right",
        "motion of originals": "motion class right in the originals",
    }
    lines += [f"  {names[name]}: {value['mean']:.1%}" for name, value in results["scores"].items()]
    for name, found in results.get("classes", {}).items():
        lines.append(f"  {name:12} " + ", ".join(f"{other} {n}" for other, n in sorted(found.items())))
    if "nearest_training_clip" in results:
        pairs = (f"{name} clips {value:.1f}" for name, value in results["nearest_training_clip"].items())
        lines.append("  median distance to the nearest training clip, grey levels: " + ", ".join(pairs))
    return "\n".join(lines)
