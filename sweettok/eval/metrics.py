"""Pixel metrics of clips against their originals: uint8 (B, 3, T, H, W) -> float64 on the CPU.

Letters: B clips, T frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor

from sweettok.pixels import to_float

PEAK = 255.0
MAX_PSNR = 100.0  # dB, for identical pixels, whose PSNR is infinite
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03


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
    batch, _, _, height, width = real.shape
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs frames of at least {SSIM_WINDOW}x{SSIM_WINDOW}, got {height}x{width}")
    # Values around zero lose less precision when squared in float32; the shift is added to the means again.
    shift = PEAK / 2
    x, y = (video.reshape(-1, 1, height, width).float() - shift for video in (real, fake))
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x * mean_x
    var_y = _blur(y * y) - mean_y * mean_y
    covariance = _blur(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + shift, mean_y + shift
    c1, c2 = (SSIM_K1 * PEAK) ** 2, (SSIM_K2 * PEAK) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.view(batch, -1).mean(1).cpu().double()


def _blur(images: Tensor) -> Tensor:
    """(M, 1, H, W) -> (M, 1, H - 10, W - 10), Gaussian window."""
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    window = (window / window.sum()).to(images)
    count = len(images)  # as channels: convolving a batch of one-channel images is ten times slower on CPUs
    down = F.conv2d(images.movedim(1, 0), window.view(1, 1, -1, 1).expand(count, 1, -1, -1), groups=count)
    return F.conv2d(down, window.view(1, 1, 1, -1).expand(count, 1, -1, -1), groups=count).movedim(0, 1)


def mean_with_interval(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, sample standard deviation and half width of the 95% interval of the mean (normal approximation).

    The last two are None for a single value.
    """
    if not values:
        raise ValueError("no values to average")
    count, deviation = len(values), stdev(values) if len(values) > 1 else None
    interval = 1.96 * deviation / math.sqrt(count) if deviation is not None else None
    return {"mean": fmean(values), "std": deviation, "interval95": interval, "count": count}
