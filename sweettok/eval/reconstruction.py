"""Quality of reconstructed clips: PSNR, SSIM, LPIPS, motion, codebook usage, and the features for rFVD.

PSNR, SSIM and LPIPS compare the original bytes with the reconstruction rounded to bytes; what the detector of rFVD sees
is the protocol's choice. Beside the reconstruction stand two baselines that know the original: its first frame held
still, and the mean of its frames.

Letters: B clips, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sweettok.eval.checks import OrderCheck, PixelCheck, suspicions
from sweettok.eval.features import FeatureExtractor, detector_frames
from sweettok.eval.metrics import mean_with_interval, motion_psnr, psnr, ssim
from sweettok.eval.pipeline import overlapped
from sweettok.eval.protocol import Protocol
from sweettok.eval.sets import FeatureSet
from sweettok.eval.sources import AUTOCAST
from sweettok.eval.tokenizers import RoundTrip, UsageCounter, round_trip
from sweettok.pixels import to_float, to_uint8

METRICS = {"psnr": psnr, "ssim": ssim, "motion": motion_psnr}
MEANING = {
    "psnr": "dB per clip over its whole volume, rounded bytes, peak 255, at most 100",
    "ssim": "per frame and channel, Gaussian 11x11 sigma 1.5, data range 255, rounded bytes",
    "motion": "psnr of the differences from frame to frame",
    "lpips": "VGG-16 version 0.1, mean over frames, rounded bytes",
}
MUCH = 0.05  # of decoded values outside of the range
Perceptual = Callable[[Tensor, Tensor], Tensor]  # two float image batches (N, 3, H, W) -> (N,)


@dataclass
class Outcome:
    """The scores of some clips; parts merge into the whole.

    Args:
        scores: clip number -> metric -> value, of the reconstruction and of each baseline.
        about: ids_per_clip and bits_per_clip of a tokenizer.
        decoded: values that it decoded; clamped: those outside of the range.
    """

    real: FeatureSet
    fake: FeatureSet
    keys: dict[int, str] = field(default_factory=dict)
    scores: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    real_pixels: PixelCheck = field(default_factory=PixelCheck)
    fake_pixels: PixelCheck = field(default_factory=PixelCheck)
    order: OrderCheck = field(default_factory=OrderCheck)
    usage: UsageCounter | None = None
    about: dict[str, float] = field(default_factory=dict)
    decoded: int = 0
    clamped: int = 0

    def merge(self, other: Outcome) -> Outcome:
        """Both together; neither is changed."""
        parts = ("real", "fake", "real_pixels", "fake_pixels", "order")
        both = {name: getattr(self, name).merge(getattr(other, name)) for name in parts}
        usage = self.usage.merge(other.usage) if self.usage and other.usage else self.usage or other.usage
        kinds = [*self.scores, *(kind for kind in other.scores if kind not in self.scores)]
        scores = {kind: {**self.scores.get(kind, {}), **other.scores.get(kind, {})} for kind in kinds}
        about, keys = {**self.about, **other.about}, {**self.keys, **other.keys}
        decoded, clamped = self.decoded + other.decoded, self.clamped + other.clamped
        return Outcome(**both, keys=keys, scores=scores, usage=usage, about=about, decoded=decoded, clamped=clamped)

    def summary(self) -> dict[str, Any]:
        """Plain data: means with intervals, the scores of every clip in their order, usage and bits of the ids."""
        order = sorted(self.keys)
        means = {
            kind: {name: mean_with_interval([clips[number][name] for number in order]) for name in clips[order[0]]}
            for kind, clips in self.scores.items()
        }
        return {
            "num_clips": len(order),
            "scores": means,
            "clips": [{"key": self.keys[number], **self.scores["reconstruction"][number]} for number in order],
            "usage": self.usage.summary() if self.usage else None,
            "clamped_fraction": self.clamped / self.decoded if self.decoded else None,
            **self.about,
        }

    def notes(self) -> list[str]:
        """What looks wrong with the clips."""
        notes = self.order.suspicions() + suspicions(self.real_pixels.summary(), self.fake_pixels.summary())
        if self.clamped > MUCH * self.decoded:
            share = f"{self.clamped / self.decoded:.0%}"
            notes.append(f"{share} of the decoded values were outside of [-0.5, 0.5]: check their range")
        return notes


def baselines(video: Tensor) -> dict[str, Tensor]:
    """Float clips (B, 3, T, H, W) without motion: the first frame, and the mean frame, in place of every frame."""
    return {"first frame": video[:, :, :1].expand_as(video), "mean frame": video.mean(2, keepdim=True).expand_as(video)}


def reconstructed(batches: Iterable[Mapping[str, Any]], tokenizer: Any, protocol: Protocol) -> Iterator[dict[str, Any]]:
    """Batches of "video" with their reconstruction "fake" added, and the `RoundTrip` that made it as "trip"."""
    dtype = AUTOCAST[protocol.autocast]
    for batch in batches:
        with torch.autocast(batch["video"].device.type, dtype) if dtype else nullcontext():
            try:
                trip = round_trip(tokenizer, batch["video"])
            except ValueError as error:
                raise ValueError(f"{error}; the clips are {', '.join(batch['key'])}") from error
        yield {**batch, "fake": trip.video, "trip": trip}


def score(
    batches: Iterable[Mapping[str, Any]],
    protocol: Protocol,
    extractor: FeatureExtractor | None = None,
    lpips: Perceptual | None = None,
    real_known: bool = False,
    keep: bool = False,
) -> Outcome:
    """Score batches {"video": uint8 (B, 3, T, H, W), "fake": the same or float, "index": (B,), "key": names}.

    Reading and reconstructing go on while a batch is being scored. real_known: leave the real clips' features out.
    keep: see `FeatureSet`. Raises whatever reading a clip raises, and ValueError for features that are not finite.
    """
    outcome = Outcome(FeatureSet(protocol.seed, keep), FeatureSet(protocol.seed, keep))

    @torch.no_grad()
    def use(batch: Mapping[str, Any]) -> None:
        numbers, video, fake = batch["index"].tolist(), batch["video"], batch["fake"]
        if "trip" in batch:
            _count(outcome, batch["trip"])
        outcome.keys.update(zip(numbers, batch["key"], strict=True))
        pixels, shown = to_float(video), _bytes(fake)
        outcome.order.update(video, shown)
        for kind, output in {"reconstruction": shown, **baselines(pixels)}.items():
            rows = _metrics(video, _bytes(output), lpips if kind == "reconstruction" else None)
            outcome.scores.setdefault(kind, {}).update(zip(numbers, rows, strict=True))
        for side, given in (("real", video), ("fake", fake)):
            frames = detector_frames(given, protocol, side == "fake")
            getattr(outcome, f"{side}_pixels").update(frames)
            if extractor is not None and not (side == "real" and real_known):
                getattr(outcome, side).update(extractor(frames), numbers, batch["key"])

    with torch.no_grad():
        overlapped(batches, use)
    return outcome


def _count(outcome: Outcome, trip: RoundTrip) -> None:
    outcome.usage = outcome.usage or UsageCounter(trip.sizes)
    outcome.usage.update(trip.lists)
    outcome.clamped += trip.clamped
    outcome.decoded += trip.video.numel()
    places = trip.video[0, 0].numel()
    bits = {"bits_per_clip": trip.bits, "bits_per_pixel": trip.bits / places}
    outcome.about = {"ids_per_clip": trip.ids[0].numel(), **bits}


def _bytes(video: Tensor) -> Tensor:
    return video if video.dtype == torch.uint8 else to_uint8(video)


def _metrics(video: Tensor, shown: Tensor, lpips: Perceptual | None) -> list[dict[str, float]]:
    """The metrics of each clip."""
    columns = {name: metric(video, shown).tolist() for name, metric in METRICS.items()}
    if lpips is not None:
        pairs = zip(to_float(video), to_float(shown), strict=True)
        columns["lpips"] = [lpips(f.movedim(0, 1), r.movedim(0, 1)).double().mean().item() for r, f in pairs]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
