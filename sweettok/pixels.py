"""Conversion of pixel values between uint8 and float, and checks of videos."""

import warnings

import torch
from torch import Tensor


def to_float(video: Tensor) -> Tensor:
    """uint8 [0, 255] of any shape -> float32 [-0.5, 0.5]."""
    if video.dtype != torch.uint8:
        raise ValueError(f"to_float expects uint8 pixels, got {video.dtype}")
    return video.float().div_(255).sub_(0.5)


def to_uint8(video: Tensor, rounding: str = "nearest") -> Tensor:
    """float of any shape, nominally [-0.5, 0.5] -> uint8; values outside the range are clamped.

    `rounding="floor"` truncates like the release's FVD loop; "nearest" is the exact inverse of `to_float`.
    """
    scaled = (video.float() + 0.5).clamp(0, 1) * 255
    if rounding == "nearest":
        return scaled.round().to(torch.uint8)
    if rounding == "floor":
        return scaled.to(torch.uint8)
    raise ValueError(f"rounding must be 'nearest' or 'floor', got {rounding!r}")


def as_clips(video: Tensor) -> Tensor:
    """Images (B, 3, H, W) as clips of one frame (B, 3, 1, H, W); anything else as it is."""
    return video.unsqueeze(2) if isinstance(video, Tensor) and video.ndim == 4 and video.shape[1] == 3 else video


def check_video(video: Tensor, check_range: bool = True) -> Tensor:
    """Clips (B, 3, T, H, W), uint8 or float in [-0.5, 0.5] -> float32 clips; ValueError for anything else.

    `check_range=False` does not check the values, which would make the host wait for the device.
    """
    if not isinstance(video, Tensor):
        advice = ": give torch.from_numpy(video)" if type(video).__name__ == "ndarray" else ""
        raise ValueError(f"video must be a torch tensor, got {type(video).__name__}{advice}")
    if video.ndim != 5 or video.shape[1] != 3:
        raise ValueError(
            f"video must have shape (batch, 3, frames, height, width), got {tuple(video.shape)}{remedy(video.shape)}"
        )
    if video.numel() == 0:
        raise ValueError(f"video holds no pixels: its shape is {tuple(video.shape)}")
    if video.dtype == torch.uint8:
        return to_float(video)
    if not video.dtype.is_floating_point:
        raise ValueError(f"video must be uint8 or floating point, got {video.dtype}")
    if not check_range:
        return video.float()
    low, high = torch.stack(video.aminmax()).tolist()
    if not (low >= -0.5 - 1e-3 and high <= 0.5 + 1e-3):  # also catches NaN
        raise ValueError(
            f"float video must lie in [-0.5, 0.5], got [{low:.4g}, {high:.4g}]: "
            "give uint8 frames, or subtract 0.5 from values in [0, 1], or halve values in [-1, 1]"
        )
    if 0 <= low < high:
        warnings.warn(
            f"no value of this float video is below 0; they lie in [{low:.4g}, {high:.4g}]: if black is 0 in it, "
            "subtract 0.5, since here black is -0.5",
            stacklevel=2,
        )
    return video.float()


def remedy(shape: torch.Size) -> str:
    """End of an error message: what turns a usual shape of a video into (1, 3, T, H, W) or (B, 3, T, H, W)."""
    changes = {
        (4, 3): "permute(3, 0, 1, 2).unsqueeze(0)",  # (dimensions, place of the channels)
        (4, 0): "unsqueeze(0)",
        (4, 1): "transpose(0, 1).unsqueeze(0)",
        (5, 2): "transpose(1, 2)",
        (5, 4): "permute(0, 4, 1, 2, 3)",
    }
    for (dims, channels), change in changes.items():
        if len(shape) == dims and shape[channels] == 3:
            return f": give video.{change}"
    return ""
