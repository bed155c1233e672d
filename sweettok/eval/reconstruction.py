"""How well a tokenizer gives clips back: PSNR, SSIM, LPIPS, rFVD and codebook usage, by the SweetTok protocol.

Clips are the frames around the middle of each video, at the tokenizer's length and resolution. PSNR, SSIM and LPIPS
compare the original bytes with the reconstruction rounded to bytes. rFVD follows the release: both sides are clamped
and truncated to bytes, stretched to I3D's size, and the Frechet distance is taken over all clips at once. Beside the
tokenizer stand two baselines that know the original: its first frame held still, and the mean of its frames.

Letters: B clips, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sweettok.eval.frechet import FeatureStats, frechet_distance
from sweettok.eval.i3d import I3D, MIN_FRAMES, without_tf32
from sweettok.eval.metrics import mean_with_interval, psnr, ssim
from sweettok.eval.tokenizers import round_trip
from sweettok.eval.usage import UsageCounter
from sweettok.pixels import to_float, to_uint8

FEW_CLIPS = 2048  # below this FVD is mostly bias

# What the numbers mean; every report carries it.
PROTOCOL = {
    "name": "sweettok-rfvd",
    "position": "center",
    "stride": 1,
    "resize": "stretch",
    "short": "black",
    "clamp": [-0.5, 0.5],
    "precision": "float32 without TF32",
    "psnr": "per clip over its whole volume, rounded bytes, peak 255, at most 100 dB",
    "ssim": "per frame and channel, Gaussian 11x11 sigma 1.5, data range 255, rounded bytes",
    "lpips": "VGG-16 version 0.1, mean over frames, rounded bytes",
    "fvd": {
        "detector": "I3D Kinetics-400, 400 logits averaged over time",
        "detector_resize": "stretch to 224x224, bilinear, no antialiasing",
        "bytes": "floor, real and fake alike",
        "pairing": "real and fake are the same clips",
        "ddof": 1,
        "dtype": "float64",
        "root": "svd",
    },
}


@dataclass
class Scores:
    """Scores of one kind of output, gathered clip by clip."""

    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    lpips: list[float] = field(default_factory=list)
    features: FeatureStats = field(default_factory=FeatureStats)

    def summary(self, real: FeatureStats) -> dict[str, Any]:
        """Mean and 95% interval of each metric that was measured; `rfvd` where two clips or more have features."""
        scores = {name: getattr(self, name) for name in ("psnr", "ssim", "lpips")}
        result: dict[str, Any] = {name: mean_with_interval(values) for name, values in scores.items() if values}
        if self.features.count >= 2:
            settings = {name: PROTOCOL["fvd"][name] for name in ("ddof", "dtype", "root")}
            result["rfvd"] = frechet_distance(real, self.features, **settings)
        return result


def baselines(video: Tensor) -> dict[str, Tensor]:
    """Float clips (B, 3, T, H, W) that cost no tokens of motion: the first frame held still, and the mean frame."""
    return {"first frame": video[:, :, :1].expand_as(video), "mean frame": video.mean(2, keepdim=True).expand_as(video)}


def detector_bytes(video: Tensor) -> Tensor:
    """Float (B, 3, T, H, W) -> uint8 (B, T, H, W, 3) as the release feeds I3D: clamped and truncated."""
    return to_uint8(video, rounding="floor").movedim(1, -1)


@torch.no_grad()
def evaluate_reconstruction(
    tokenizer: Any,
    batches: Iterable[Mapping[str, Any]],
    i3d: I3D | None = None,
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, Any]:
    """Score a tokenizer on batches {"video": uint8 (B, 3, T, H, W), ...}, all on the videos' device.

    `tokenizer` has encode and decode (see `round_trip`); `lpips` maps two float image batches (N, 3, H, W) to (N,).
    Returns num_clips, ids_per_clip, bits_per_clip, usage per word list, and the scores of the reconstruction and of
    the baselines. Raises ValueError when there are no clips, and whatever reading a clip raises.
    """
    real, scores, usage = FeatureStats(), {}, None
    with without_tf32():
        for batch in batches:
            video = batch["video"]
            trip = round_trip(tokenizer, video)
            usage = usage or UsageCounter(trip.sizes)
            usage.update(trip.lists)
            pixels = to_float(video)
            if i3d is not None:
                real.update(i3d(detector_bytes(pixels)))
            for name, output in {"reconstruction": trip.video, **baselines(pixels)}.items():
                _score(scores.setdefault(name, Scores()), video, output, i3d, lpips)
    if usage is None:
        raise ValueError("there are no clips to score")
    return {
        "num_clips": len(scores["reconstruction"].psnr),
        "ids_per_clip": trip.ids[0].numel(),
        "bits_per_clip": trip.bits,
        "usage": usage.summary(),
        "scores": {name: kind.summary(real) for name, kind in scores.items()},
    }


def _score(scores: Scores, video: Tensor, output: Tensor, i3d: I3D | None, lpips: Callable | None) -> None:
    shown = to_uint8(output)
    scores.psnr += psnr(video, shown).tolist()
    scores.ssim += ssim(video, shown).tolist()
    if lpips is not None:
        for real, fake in zip(to_float(video), to_float(shown), strict=True):
            scores.lpips.append(lpips(fake.movedim(0, 1), real.movedim(0, 1)).double().mean().item())
    if i3d is not None:
        scores.features.update(i3d(detector_bytes(output)))


def refusal(num_clips: int, num_frames: int, has_weights: bool) -> str | None:
    """Why rFVD cannot be measured, or None when it can."""
    if not has_weights:
        return "no I3D weights: give --i3d PATH, the file i3d_pretrained_400.pt"
    if num_frames < MIN_FRAMES:
        return f"clips have {num_frames} frames, I3D needs at least {MIN_FRAMES}"
    if num_clips < 2:
        return f"a Frechet distance needs at least 2 clips, there is {num_clips}"
    return None


def cautions(num_clips: int) -> list[str]:
    """What a reader of an rFVD must know."""
    if num_clips >= FEW_CLIPS:
        return []
    return [f"rFVD of {num_clips} clips is biased upwards: compare it only with values of as many clips, "
            f"and use {FEW_CLIPS} or more to report"]  # fmt: skip
