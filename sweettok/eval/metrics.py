"""Pixel metrics of clips against their originals: uint8 (B, 3, T, H, W) -> float64 on the CPU.

Letters: B clips, T frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sweettok.pixels import to_float

PEAK = 255.0
MAX_PSNR = 100.0  # dB, for identical pixels, whose PSNR is infinite
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03
CACHED = 1 << 17  # values of frames that are compared at a time on a CPU


def _check(real: Tensor, fake: Tensor) -> None:
    for name, video in (("real", real), ("fake", fake)):
        if video.dtype != torch.uint8 or video.ndim != 5 or video.shape[1] != 3 or video.numel() == 0:
            raise ValueError(f"{name} must be uint8 (B, 3, T, H, W), got {video.dtype} {tuple(video.shape)}")
    if real.shape != fake.shape:
        raise ValueError(f"real {tuple(real.shape)} and fake {tuple(fake.shape)} differ in shape")


def _error(real: Tensor, fake: Tensor) -> Tensor:
    _check(real, fake)
    return real.int() - fake.int()


def _psnr(error: Tensor, dims: tuple[int, ...]) -> Tensor:
    """In dB on the CPU. Squared errors are summed as integers, so the result does not depend on device or order."""
    total = error.square().sum(dims).cpu().double()
    count = max(math.prod(error.shape[dim] for dim in dims), 1)
    return (10 * torch.log10(PEAK**2 * count / total)).clamp(max=MAX_PSNR)


def psnr(real: Tensor, fake: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each clip in dB, (B,), from its mean squared error over all frames; at most 100."""
    return _psnr(_error(real, fake), (1, 2, 3, 4))


def frame_psnr(real: Tensor, fake: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame in dB, (B, T); at most 100 dB."""
    return _psnr(_error(real, fake), (1, 3, 4))


def motion_psnr(real: Tensor, fake: Tensor) -> Tensor:
    """Like `psnr`, (B,), of the differences of successive frames: measures errors of motion.

    Errors that are the same in all frames do not count. Clips of one frame get 100 dB.
    """
    return _psnr(_error(real, fake).diff(dim=2), (1, 2, 3, 4))


def frame_distance(network: Callable[[Tensor, Tensor], Tensor], real: Tensor, fake: Tensor) -> list[float]:
    """A perceptual distance of each clip, the mean over its frames.

    network: two float image batches (N, 3, H, W) in [-0.5, 0.5] -> (N,), as in `sweettok.losses.perceptual`.
    """
    pairs = zip(to_float(fake), to_float(real), strict=True)
    return [network(f.movedim(0, 1), r.movedim(0, 1)).double().mean().item() for f, r in pairs]


def ssim(real: Tensor, fake: Tensor) -> Tensor:
    """Structural similarity of each clip, (B,) (Wang et al. 2004).

    Per frame and colour channel with an 11x11 Gaussian window (sigma 1.5) without padding, K1 = 0.01, K2 = 0.03, data
    range 255, weighted (not sample) covariances; then the mean over pixels, channels and frames.
    """
    _check(real, fake)
    return _ssim(real, [fake])[0]


def compare(real: Tensor, fakes: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """`psnr`, `ssim` and `motion_psnr` as "psnr", "ssim" and "motion", each (B,), of several clips by name.

    A fake of one frame (B, 3, 1, H, W) stands for a clip that repeats it. What depends on `real` alone, or on one
    frame, is computed once.
    """
    still = None
    found = {}
    for (name, fake), similarity in zip(fakes.items(), _ssim(real, list(fakes.values())), strict=True):
        error = _error(real, fake.expand_as(real) if fake.shape[2] == 1 else fake)
        if fake.shape[2] == 1:  # the changes of the error are those of the clip
            still = motion = _psnr(real.int().diff(dim=2), (1, 2, 3, 4)) if still is None else still
        else:
            motion = _psnr(error.diff(dim=2), (1, 2, 3, 4))
        found[name] = {"psnr": _psnr(error, (1, 2, 3, 4)), "ssim": similarity, "motion": motion}
    return found


def _ssim(real: Tensor, fakes: Sequence[Tensor]) -> list[Tensor]:
    """`ssim` of several fakes, whose frames may be one for all.

    Frames are taken in groups, whose intermediate values fit in a processor's cache.
    """
    height, width = real.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs frames of at least {SSIM_WINDOW}x{SSIM_WINDOW}, got {height}x{width}")
    size = max(1, CACHED // (3 * height * width)) if real.device.type == "cpu" else real.shape[2]
    rows = []
    for clip, *others in zip(real, *fakes, strict=True):
        moments = [_Moments.of(other) if other.shape[1] == 1 else None for other in others]
        total = torch.zeros(len(fakes), dtype=torch.float64, device=real.device)
        for start in range(0, clip.shape[1], size):
            frames = slice(start, start + size)
            x = _Moments.of(clip[:, frames])
            parts = [_similarity(x, y or _Moments.of(o[:, frames])) for o, y in zip(others, moments, strict=True)]
            total += torch.stack([part.sum(dtype=torch.float64) for part in parts])
        rows.append(total / (3 * clip.shape[1] * (height - SSIM_WINDOW + 1) * (width - SSIM_WINDOW + 1)))
    return list(torch.stack(rows, dim=1).cpu())


class _Moments(NamedTuple):
    """Frames (3, T, H, W), float around zero, and their mean and variance in every window."""

    values: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, frames: Tensor) -> _Moments:
        values = frames.float() - PEAK / 2  # values around zero lose less precision when squared in float32
        mean = _blur(values)
        return cls(values, mean, _blur(values * values).addcmul_(mean, mean, value=-1))


def _similarity(x: _Moments, y: _Moments) -> Tensor:
    """(3, T, H - 10, W - 10)"""
    c1, c2 = (SSIM_K1 * PEAK) ** 2, (SSIM_K2 * PEAK) ** 2
    covariance = _blur(x.values * y.values).addcmul_(x.mean, y.mean, value=-1)
    mean_x, mean_y = x.mean + PEAK / 2, y.mean + PEAK / 2
    similarity = (mean_x * mean_y).mul_(2).add_(c1).mul_(covariance.mul_(2).add_(c2))
    return similarity.div_((mean_x.square_() + mean_y.square_()).add_(c1).mul_((x.variance + y.variance).add_(c2)))


def _blur(frames: Tensor) -> Tensor:
    """(C, T, H, W) -> (C, T, H - 10, W - 10), Gaussian window."""
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    window = (window / window.sum()).to(frames)
    images = frames.flatten(0, 1)  # as channels: convolving a batch of one-channel images is ten times slower on CPUs
    down = F.conv2d(images, window.view(1, 1, -1, 1).expand(len(images), 1, -1, -1), groups=len(images))
    both = F.conv2d(down, window.view(1, 1, 1, -1).expand(len(images), 1, -1, -1), groups=len(images))
    return both.unflatten(0, frames.shape[:2])


def mean_with_interval(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, sample standard deviation and half width of the 95% interval of the mean (normal approximation).

    The last two are None for a single value.
    """
    if not values:
        raise ValueError("no values to average")
    count, deviation = len(values), stdev(values) if len(values) > 1 else None
    interval = 1.96 * deviation / math.sqrt(count) if deviation is not None else None
    return {"mean": fmean(values), "std": deviation, "interval95": interval, "count": count}
