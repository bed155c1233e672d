"""Transformer layers and stacks: over the places of a slice, over the slices of a place, and over single tokens.

Letters: B batch, t h w latent grid, D width, M places. A stack gives the un-normed outputs of all its layers;
`norm_out` is for callers that read the last one, and is left out where nobody does. `sizes` of a stack are dim,
num_heads, head_dim and ff_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweettok.layers.attention import Attention, SingleTokenAttention, WindowAttention
from sweettok.layers.checkpointing import Checkpointed
from sweettok.layers.norm import EPS, Norm
from sweettok.layers.positions import PositionConv, grid_rotary_angles


class FeedForward(nn.Module):
    """Gated GELU layer (GEGLU): Linear to value and gate halves, no biases."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return self.down(value * F.gelu(gate))


class Layer(nn.Module):
    """[position convolution] -> self-attention -> [cross-attention] -> feed-forward, each added to its input.

    Holds the parts; the stack that owns the layer applies them.
    """

    def __init__(
        self,
        attention: Callable[..., nn.Module],
        *,
        dim: int,
        num_heads: int,
        head_dim: int,
        ff_dim: int,
        peg: bool = False,
        cross: bool = False,
        num_null_kv: int = 0,
        **attention_options: Any,
    ):
        super().__init__()
        heads = {"dim": dim, "num_heads": num_heads, "head_dim": head_dim}
        self_attn = attention(**heads, **attention_options)
        self.peg = PositionConv(dim) if peg else None
        self.self_attn = self_attn
        self.cross_attn = Attention(**heads, cross=True, num_null_kv=num_null_kv) if cross else None
        self.ff = FeedForward(dim, ff_dim)


class SpatialTransformer(Checkpointed):
    """Layers over the places of a slice, or over a grid of queries, with 2-D rotary positions; `w` layers use windows.

    The position convolution joins the slices of a clip. Layers with full attention (`t`) have it, and cross-attention,
    where asked for; window layers have neither.
    """

    def __init__(
        self,
        pattern: str,
        *,
        window_size: int,
        peg: bool = False,
        cross: bool = False,
        num_null_kv: int = 0,
        norm_out: bool = True,
        **sizes: int,
    ):
        super().__init__()
        self.head_dim = sizes["head_dim"]
        self.layers = nn.ModuleList(
            Layer(WindowAttention, window_size=window_size, **sizes)
            if kind == "w"
            else Layer(Attention, peg=peg, cross=cross, num_null_kv=num_null_kv, **sizes)
            for kind in pattern
        )
        self.norm_out = Norm(sizes["dim"]) if norm_out else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int], contexts: list[Tensor] | None = None) -> list[Tensor]:
        """x (B, t, h*w, D) -> the output of every layer; layer i cross-attends to contexts[i] (B, N, D)."""
        angles, outputs = self.angles(grid, x.device), []
        for i, layer in enumerate(self.layers):
            x = self.recomputed(self.step, layer, x, grid, angles, contexts[i] if contexts else None)
            outputs.append(x)
        return outputs

    @staticmethod
    def step(layer: Layer, x: Tensor, grid: tuple[int, int], angles: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, t, h*w, D); context (B, N, D) is the same for all slices of a clip."""
        B, t, _, _ = x.shape
        if layer.peg is not None:
            x = x + layer.peg(x.unflatten(2, grid)).flatten(2, 3)
        x = x.flatten(0, 1)
        if isinstance(layer.self_attn, WindowAttention):
            x = x + layer.self_attn(x, grid)
        else:
            x = x + layer.self_attn(x, angles=angles)
        if layer.cross_attn is not None:
            keys, values = (kv.repeat_interleave(t, 0) for kv in layer.cross_attn.keys_values(context))
            x = x + layer.cross_attn.attend(x, keys, values)
        return (x + layer.ff(x)).unflatten(0, (B, t))

    def angles(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        return grid_rotary_angles(*grid, self.head_dim, device)


class TemporalTransformer(Checkpointed):
    """Causal layers over the slices of one place, with the position convolution and no other positions.

    `scrambled_peg` keeps a reading of the memory order that some published weights were trained with: the convolution
    takes rows in (h, w, t) order as if they were in (t, h, w) order.
    """

    def __init__(self, pattern: str, *, scrambled_peg: bool = False, norm_out: bool = True, **sizes: int):
        super().__init__()
        self.scrambled_peg = scrambled_peg
        self.layers = nn.ModuleList(Layer(Attention, peg=True, causal=True, **sizes) for _ in pattern)
        self.norm_out = Norm(sizes["dim"]) if norm_out else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """x (B, h*w, t, D) -> the output of every layer."""
        outputs = []
        for layer in self.layers:
            x = self.recomputed(self.step, layer, x, grid)
            outputs.append(x)
        return outputs

    def step(self, layer: Layer, x: Tensor, grid: tuple[int, int]) -> Tensor:
        B, _, t, _ = x.shape
        if self.scrambled_peg:
            x = x + layer.peg(x.reshape(B, t, *grid, -1)).reshape(x.shape)
        else:
            x = x + layer.peg(x.transpose(1, 2).unflatten(2, grid)).flatten(2, 3).transpose(1, 2)
        x = x.flatten(0, 1)
        x = x + layer.self_attn(x)
        return (x + layer.ff(x)).unflatten(0, (B, -1))


class PlaceTransformer(Checkpointed):
    """Layers over single tokens, one per place of the grid; each may look at its own place's context, nowhere else."""

    def __init__(self, pattern: str, *, cross: bool = False, norm_out: bool = True, **sizes: int):
        super().__init__()
        self.layers = nn.ModuleList(Layer(SingleTokenAttention, cross=cross, **sizes) for _ in pattern)
        self.norm_out = Norm(sizes["dim"]) if norm_out else nn.Identity()

    def forward(self, x: Tensor, contexts: list[Tensor] | None = None) -> list[Tensor]:
        """x (B, M, D), contexts[i] (B, M, t, D) -> the output of every layer."""
        outputs = []
        for i, layer in enumerate(self.layers):
            x = self.recomputed(self.step, layer, x, contexts[i] if contexts else None)
            outputs.append(x)
        return outputs

    @staticmethod
    def step(layer: Layer, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x + layer.self_attn(x)
        if layer.cross_attn is not None:
            x = x + layer.cross_attn(x.flatten(0, 1)[:, None], context.flatten(0, 1)).view_as(x)
        return x + layer.ff(x)
