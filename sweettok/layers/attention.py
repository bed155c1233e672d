"""Attention of the transformer layers: full, causal, cross, on one token, and in windows.

Letters: R independent sequences, N tokens of a sequence, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweettok.layers.linear import SplitLinear
from sweettok.layers.norm import Norm
from sweettok.layers.positions import unit_rotated

LOGIT_SCALE = 8.0  # queries and keys are unit vectors, so the softmax needs a temperature of its own
MAX_ROWS = 65_535  # limit of CUDA's attention kernels on sequences times heads


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """`F.scaled_dot_product_attention` of (R, heads, N, head_dim), in parts where R * heads exceeds `MAX_ROWS`.

    Exported programs do not split, because that would fix their batch size; so on GPUs their batches are limited.
    """
    rows = max(1, MAX_ROWS // q.shape[1])
    if torch.compiler.is_exporting() or q.shape[0] <= rows:
        return F.scaled_dot_product_attention(q, k, v, **options)
    parts = zip(q.split(rows), k.split(rows), v.split(rows), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part, **options) for part in parts])


class Attention(nn.Module):
    """Multi-head attention with queries and keys of unit length, without biases.

    Self-attention norms the input for the queries only, not for keys and values (as in the release). With `cross`, keys
    and values come from `context_norm(context)`, after `num_null_kv` learned pairs.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        head_dim: int,
        cross: bool = False,
        causal: bool = False,
        num_null_kv: int = 0,
    ):
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads, self.causal = num_heads, causal
        self.norm = Norm(dim)
        self.context_norm = Norm(dim) if cross else None
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = SplitLinear(dim, inner)
        self.to_out = nn.Linear(inner, dim, bias=False)
        self.q_scale = nn.Parameter(torch.ones(head_dim))
        self.k_scale = nn.Parameter(torch.ones(head_dim))
        # Rows alternate key, value.
        self.null_kv = nn.Parameter(torch.randn(num_heads, 2 * num_null_kv, head_dim)) if num_null_kv else None

    def forward(self, x: Tensor, context: Tensor | None = None, angles: Tensor | None = None) -> Tensor:
        """x (R, N, D), context (R, M, D), rotary angles (2, N, head_dim / 2) of self-attention -> (R, N, D)."""
        keys, values = self.keys_values(x if context is None else context, angles)
        return self.attend(x, keys, values, angles)

    def keys_values(self, context: Tensor, angles: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Context (R, N, D) -> keys and values (R, heads, num_null_kv + N, head_dim) for `attend`."""
        if self.context_norm is not None:
            context = self.context_norm(context)
        k, v = (part.unflatten(2, (self.num_heads, -1)) for part in self.to_kv(context))
        dtype, k = v.dtype, unit_rotated(k, self.k_scale, angles)
        if self.null_kv is not None:
            null_k, null_v = self.null_kv.unflatten(1, (-1, 2)).permute(2, 1, 0, 3)[:, None]
            null_k = F.normalize(null_k.float(), dim=-1) * self.k_scale
            k = torch.cat((null_k.expand(k.shape[0], -1, -1, -1), k), dim=1)
            v = torch.cat((null_v.to(dtype).expand(v.shape[0], -1, -1, -1), v), dim=1)
        return k.to(dtype).transpose(1, 2), v.transpose(1, 2)

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, angles: Tensor | None = None) -> Tensor:
        """Tokens (R, N, D), and keys and values of `keys_values` -> (R, N, D)."""
        q = self.to_q(self.norm(x)).unflatten(2, (self.num_heads, -1))
        q = unit_rotated(q, self.q_scale, angles).to(values.dtype).transpose(1, 2)
        out = scaled_dot_product(q, keys, values, is_causal=self.causal, scale=LOGIT_SCALE)
        return self.to_out(out.transpose(1, 2).flatten(2))


class SingleTokenAttention(nn.Module):
    """Self-attention on sequences of one token: the softmax is 1, so only the value path has an effect."""

    def __init__(self, *, dim: int, num_heads: int, head_dim: int):
        super().__init__()
        self.to_v = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(self.to_v(x))


class WindowAttention(nn.Module):
    """Attention inside square windows of the token grid, with a learned bias for each relative position."""

    def __init__(self, *, dim: int, num_heads: int, head_dim: int, window_size: int):
        super().__init__()
        inner, size = num_heads * head_dim, window_size
        self.num_heads, self.window_size = num_heads, size
        self.norm = Norm(dim)
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.proj = nn.Linear(inner, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(size), persistent=False)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """x (R, h*w, D) on a grid (h, w) that windows divide -> (R, h*w, D)."""
        size, (rows, columns) = self.window_size, (side // self.window_size for side in grid)
        windows = self.norm(x).unflatten(1, (rows, size, columns, size)).transpose(2, 3).flatten(3, 4).flatten(0, 2)
        q, k, v = self.qkv(windows).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        out = scaled_dot_product(q, k, v, attn_mask=bias.to(q.dtype)[None])
        out = self.proj(out.transpose(1, 2).flatten(2)).unflatten(0, (-1, rows, columns))
        return out.unflatten(3, (size, size)).transpose(2, 3).flatten(1, 4)


def relative_position_index(size: int) -> Tensor:
    """(size^2, size^2) rows of the bias table: (y_q - y_k + size - 1) * (2 size - 1) + (x_q - x_k + size - 1)."""
    positions = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    difference = positions[:, None] - positions[None] + size - 1
    return difference[..., 0] * (2 * size - 1) + difference[..., 1]
