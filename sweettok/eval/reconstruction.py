"""Scores of reconstructed clips: PSNR, SSIM, LPIPS, motion, codebook usage, and the features for rFVD.

PSNR, SSIM and LPIPS compare the original bytes with the reconstruction rounded to bytes; the input of rFVD's detector
is set by the protocol. Two baselines repeat the first frame, or the mean frame, of the original.

Letters: B clips, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sweettok.eval.checks import order_errors, order_notes, pixel_facts, pixel_notes, pixel_summary
from sweettok.eval.features import FeatureExtractor, clip_features, detector_frames
from sweettok.eval.metrics import compare, frame_distance, mean_with_interval
from sweettok.eval.protocol import Protocol
from sweettok.eval.sources import autocast
from sweettok.eval.tokenizers import UsageCounter, round_trip
from sweettok.pixels import to_float, to_uint8

MEANING = {
    "psnr": "dB per clip over its whole volume, rounded bytes, peak 255, at most 100",
    "ssim": "per frame and channel, Gaussian 11x11 sigma 1.5, data range 255, rounded bytes",
    "motion": "psnr of the differences from frame to frame",
    "lpips": "VGG-16 version 0.1, mean over frames, rounded bytes",
}
LARGEST_CLAMPED = 0.05  # fraction of decoded values outside of the range without a note
BASELINES = ("first frame", "mean frame")
REAL = ("real_pixels", *BASELINES)  # columns that depend on the real clips alone, beside their features
Perceptual = Callable[[Tensor, Tensor], Tensor]  # two float image batches (N, 3, H, W) -> (N,)


def reconstructed(batches: Iterable[dict[str, Any]], tokenizer: Any, protocol: Protocol) -> Iterator[dict[str, Any]]:
    """Add the reconstruction "fake" and its `RoundTrip` "trip" to batches of "video"."""
    for batch in batches:
        with autocast(batch["video"].device, protocol):
            try:
                trip = round_trip(tokenizer, batch["video"])
            except ValueError as error:
                raise ValueError(f"{error}; the clips are {', '.join(batch['key'])}") from error
        yield {**batch, "fake": trip.video, "trip": trip}


@dataclass
class Scorer:
    """Scores batches {"video": uint8 (B, 3, T, H, W), "fake": the same or float, "key": names, optional "trip"}.

    A call returns columns with one value per clip, for `summarize` and `find_notes`; `usage` counts the ids of all
    batches. real_known: leave out the columns of REAL, which depend on the real clips alone.
    """

    protocol: Protocol
    extractor: FeatureExtractor | None = None
    lpips: Perceptual | None = None
    real_known: bool = False
    usage: UsageCounter | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Sequence]:
        video, fake, trip = batch["video"], batch["fake"], batch.get("trip")
        shown = fake if fake.dtype == torch.uint8 else to_uint8(fake)
        columns: dict[str, Sequence] = {"key": batch["key"], "order": order_errors(video, shown)}
        still = {} if self.real_known else baselines(to_float(video))
        outputs = {"reconstruction": shown} | {name: to_uint8(output[:, :, :1]) for name, output in still.items()}
        for name, scores in compare(video, outputs).items():
            values = {metric: score.tolist() for metric, score in scores.items()}
            if name == "reconstruction" and self.lpips is not None:
                values["lpips"] = frame_distance(self.lpips, video, shown)
            columns[name] = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        for side, given in (("real", video), ("fake", fake)):
            if side == "real" and self.real_known:
                continue
            frames = detector_frames(given, self.protocol, side == "fake")
            columns[f"{side}_pixels"] = pixel_facts(frames)
            if self.extractor is not None:
                columns[f"{side}_features"] = clip_features(self.extractor, frames, batch["key"])
        if trip is not None:
            self.usage = self.usage or UsageCounter(trip.sizes)
            self.usage.update(trip.lists)
            bits = {"ids_per_clip": trip.ids[0].numel(), "bits_per_clip": trip.bits}
            bits["bits_per_pixel"] = trip.bits / video[0, 0].numel()
            columns |= {"clamped": trip.clamped.tolist(), "bits": [bits] * len(video)}
        return columns


def baselines(video: Tensor) -> dict[str, Tensor]:
    """Float clips (B, 3, T, H, W) that repeat the first frame or the mean frame."""
    return {"first frame": video[:, :, :1].expand_as(video), "mean frame": video.mean(2, keepdim=True).expand_as(video)}


def block_means(video: Tensor, patch: int, temporal_patch: int) -> Tensor:
    """Float clips (B, 3, T, H, W) in which every cell of a latent grid has its mean colour.

    Cells are patches of the first frame, and of `temporal_patch` frames each after it. The size must divide by them.
    """
    parts = []
    for frames, depth in ((video[:, :, :1], 1), (video[:, :, 1:], temporal_patch)):
        if frames.shape[2]:
            means = F.avg_pool3d(frames, (depth, patch, patch))
            parts.append(F.interpolate(means, frames.shape[2:], mode="nearest"))
    return torch.cat(parts, dim=2)


def summarize(clips: Sequence[dict[str, Any]], usage: UsageCounter | None) -> dict[str, Any]:
    """Results of all clips: means with intervals, scores of each clip, usage and bits of the ids."""
    means = {
        kind: {name: mean_with_interval([clip[kind][name] for clip in clips]) for name in clips[0][kind]}
        for kind in ("reconstruction", *BASELINES)
    }
    return {
        "num_clips": len(clips),
        "scores": means,
        "clips": [{"key": clip["key"], **clip["reconstruction"]} for clip in clips],
        "usage": usage.summary() if usage else None,
        "clamped_fraction": _clamped(clips),
        **clips[0].get("bits", {}),
    }


def find_notes(clips: Sequence[dict[str, Any]]) -> list[str]:
    """Notes on likely mistakes in the clips."""
    notes = order_notes([clip["order"] for clip in clips])
    notes += pixel_notes(*(pixel_summary([clip[f"{side}_pixels"] for clip in clips]) for side in ("real", "fake")))
    share = _clamped(clips)
    if share is not None and share > LARGEST_CLAMPED:
        notes.append(f"{share:.0%} of the decoded values were outside of [-0.5, 0.5]: check their range")
    return notes


def _clamped(clips: Sequence[dict[str, Any]]) -> float | None:
    """Fraction of decoded values outside of the range; None if nothing was decoded."""
    if "clamped" not in clips[0]:
        return None
    return sum(clip["clamped"] for clip in clips) / len(clips)
