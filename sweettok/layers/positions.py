"""Position encodings: rotary angles of sequences and grids, sinusoids, and the position convolution."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

THETA = 10000.0


def rotary_angles(start: int | Tensor, count: int, head_dim: int, device: torch.device) -> Tensor:
    """(2, count, head_dim / 2): cosine and sine for positions start, start + 1, ... and every channel pair."""
    angles = (start + torch.arange(count, device=device))[:, None] * _frequencies(head_dim, 2, device)
    return torch.stack((angles.cos(), angles.sin()))


def grid_rotary_angles(
    height: int, width: int, head_dim: int, device: torch.device, units: tuple[int, int] | None = None
) -> Tensor:
    """(2, height * width, head_dim / 2): cosine and sine, row-major; channel pair 2i rotates by x, pair 2i + 1 by y.

    With `units`, the centres of the cells in the coordinates of a grid of that height and width over the same area.
    """
    sides = (height, width)
    y, x = (
        (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (unit / size) - 0.5
        for size, unit in zip(sides, units or sides, strict=True)
    )
    xy = torch.stack((x.repeat(height), y.repeat_interleave(width, output_size=height * width)), dim=-1)
    angles = (_frequencies(head_dim, 4, device)[:, None] * xy[:, None]).flatten(1)
    return torch.stack((angles.cos(), angles.sin()))


def sinusoids(count: int, dim: int, device: torch.device) -> Tensor:
    """(count, dim): sines and cosines of positions 0, 1, ..., to be added to tokens."""
    angles = torch.arange(count, device=device)[:, None] * _frequencies(dim, 2, device)
    return torch.cat((angles.sin(), angles.cos()), dim=1)[:, :dim]


def _frequencies(head_dim: int, step: int, device: torch.device) -> Tensor:
    return THETA ** (-torch.arange(0, head_dim, step, device=device, dtype=torch.float32) / head_dim)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate channel pairs (2p, 2p + 1) of x (..., N, head_dim) by `angles` (2, N, head_dim / 2), in float32."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


def unit_rotated(x: Tensor, scale: Tensor, angles: Tensor | None) -> Tensor:
    """x (R, N, heads, head_dim), rotated by `angles` as in `rotate`, at unit length, times `scale` (head_dim,).

    Without gradients, x may be overwritten.
    """
    if torch.compiler.is_compiling():  # compilers fuse plain operations
        x = x.float() if angles is None else rotate(x, angles.unsqueeze(2))
        return F.normalize(x, dim=-1) * scale
    turns = None if angles is None else torch.complex(*angles)[:, None]
    if torch.is_grad_enabled():
        return _UnitRotated.apply(x, scale, turns)
    return _unit(x, turns, in_place=True)[0].mul_(scale)


def _unit(x: Tensor, turns: Tensor | None, in_place: bool = False) -> tuple[Tensor, Tensor]:
    """x (R, N, heads, head_dim) at unit length, multiplied by complex `turns` (N, 1, head_dim / 2), and its lengths."""
    x = x.float()
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(1e-12)
    x = x.div_(length) if in_place else x / length
    if turns is not None:
        torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(turns)
    return x, length


class _UnitRotated(torch.autograd.Function):
    """`unit_rotated` in fewer operations, forward and backward, than its parts take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, turns: Tensor | None) -> Tensor:
        unit, length = _unit(x, turns)
        ctx.save_for_backward(unit, length, scale, turns)
        ctx.dtype = x.dtype
        return unit * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, length, scale, turns = ctx.saved_tensors
        products = gradient * unit
        along = (products * scale).sum(-1, keepdim=True)
        x = torch.mul(gradient, scale, out=torch.empty_like(unit))  # `gradient` may have other strides
        x = x.addcmul_(unit, along, value=-1).div_(length)
        if turns is not None:
            torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(turns.conj())
        return x.to(ctx.dtype), products.flatten(0, -2).sum(0), None


class PositionConv(nn.Module):
    """PEG: depthwise 3x3x3 convolution over the latent grid, zero-padded in space and causally in time."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv3d(dim, dim, kernel_size=3, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, t, h, w, D) -> (B, t, h, w, D)."""
        # Through views, the gradient gets the weight's strides; those of a depthwise weight make DDP warn otherwise.
        weight = self.conv.weight.squeeze(1).unsqueeze(1)
        parts = x, weight, self.conv.bias
        if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return _depthwise_conv(*parts)
        if torch.is_autocast_enabled("cpu"):  # which would not convert what the backward pass keeps
            parts = tuple(part.to(torch.get_autocast_dtype("cpu")) for part in parts)
        return _DepthwiseConv.apply(*parts)


def _depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None, last: int = 0) -> Tensor:
    """x (B, t, h, w, D), zero-padded by `last` slices at the end and by 2 - last at the start of time."""
    # The convolution pads both ends, and slices are left out, which takes half of the time of a padded copy.
    out = F.conv3d(x.movedim(-1, 1), weight, bias, padding=(2, 1, 1), groups=len(weight)).movedim(1, -1)
    return out[:, last : last + x.shape[1]]


class _DepthwiseConv(torch.autograd.Function):
    """`_depthwise_conv` with a backward pass that takes a fifth to a half of the time of PyTorch's on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _depthwise_conv(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants = ctx.needs_input_grad
        return (
            _depthwise_conv(gradient, weight.flip(2, 3, 4), None, last=2) if wants[0] else None,
            _weight_gradient(x, gradient, weight) if wants[1] else None,
            gradient.flatten(0, -2).sum(0) if wants[2] else None,
        )


def _weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the depthwise weight (D, 1, 3, 3, 3): one of a convolution of images for each distance in time."""
    parts = []
    for kernel, back in zip(weight.unbind(2), (2, 1, 0), strict=True):
        if back >= x.shape[1]:
            parts.append(torch.zeros_like(kernel))
            continue
        images = (slices.flatten(0, 1).movedim(-1, 1) for slices in (gradient[:, back:], x[:, : x.shape[1] - back]))
        sizes = [0], [1, 1], [1, 1], [1, 1], False, [0, 0], len(weight)  # bias, stride, padding, dilation, ..., groups
        wanted = [False, True, False]
        parts.append(torch.ops.aten.convolution_backward(*images, kernel, *sizes, wanted)[1])
    return torch.stack(parts, dim=2)
