"""Pixel metrics of clips against their originals. Letters: B clips, T frames, H W pixels.

All take uint8 (B, 3, T, H, W), so a score belongs to what a viewer would see, and give float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor

PEAK = 255.0
MAX_PSNR = 100.0  # dB given to identical pixels, whose true value is infinite
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
    """In dB on the CPU; squared errors are summed as integers, so that every device and order gives the same value."""
    total = error.square().sum(dims).cpu().double()
    count = max(math.prod(error.shape[dim] for dim in dims), 1)
    return (10 * torch.log10(PEAK**2 * count / total)).clamp(max=MAX_PSNR)


def psnr(real: Tensor, fake: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each clip in dB, (B,), from the mean squared error over its whole volume.

    At most 100 dB, which identical clips get.
    """
    return _psnr(_error(real, fake), (1, 2, 3, 4))


def frame_psnr(real: Tensor, fake: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame in dB, (B, T); at most 100 dB."""
    return _psnr(_error(real, fake), (1, 3, 4))


def motion_psnr(real: Tensor, fake: Tensor) -> Tensor:
    """Like `psnr`, (B,), of the differences from each frame to the next: how well motion and stillness are kept.

    Errors that stay the same from frame to frame do not count. Clips of one frame have none and get 100 dB.
    """
    return _psnr(_error(real, fake).diff(dim=2), (1, 2, 3, 4))


def ssim(real: Tensor, fake: Tensor) -> Tensor:
    """Structural similarity of each clip, (B,) (Wang et al. 2004).

    Per frame and colour channel with an 11x11 Gaussian window (sigma 1.5) wherever it fits whole, K1 = 0.01,
    K2 = 0.03, data range 255, weighted (not sample) covariances; then the mean over places, channels and frames.
    """
    _check(real, fake)
    batch, _, _, height, width = real.shape
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs frames of at least {SSIM_WINDOW}x{SSIM_WINDOW}, got {height}x{width}")
    # Differences and squares of values around zero keep float32 exact enough; the shift is undone in the means.
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
    count = len(images)  # as channels of their own: convolving a batch of one channel is ten times slower on CPUs
    down = F.conv2d(images.movedim(1, 0), window.view(1, 1, -1, 1).expand(count, 1, -1, -1), groups=count)
    return F.conv2d(down, window.view(1, 1, 1, -1).expand(count, 1, -1, -1), groups=count).movedim(0, 1)


def mean_with_interval(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, sample standard deviation and half width of the mean's 95% interval (normal approximation) of `values`.

    A single value has no deviation: both are None.
    """
    if not values:
        raise ValueError("no values to average")
    count, deviation = len(values), stdev(values) if len(values) > 1 else None
    interval = 1.96 * deviation / math.sqrt(count) if deviation is not None else None
    return {"mean": fmean(values), "std": deviation, "interval95": interval, "count": count}
