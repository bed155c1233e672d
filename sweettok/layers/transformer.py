"""Transformer layers and stacks of them: over space, over time, and over single tokens.

Letters: B batch, t h w latent grid, D width, M positions. `sizes` of a stack are dim, num_heads, head_dim and ff_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweettok.layers.attention import Attention, SingleTokenAttention, WindowAttention
from sweettok.layers.checkpointing import Checkpointed
from sweettok.layers.linear import PaddedLinear, SplitLinear
from sweettok.layers.norm import EPS, Norm
from sweettok.layers.positions import PositionConv, grid_rotary_angles


class FeedForward(nn.Module):
    """Gated GELU layer (GEGLU): Linear to value and gate halves, no biases."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.up = SplitLinear(dim, hidden)
        self.down = PaddedLinear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(self.norm(x))
        if torch.is_grad_enabled():
            return self.down(value * F.gelu(gate))
        return self.down(value.mul_(torch.ops.aten.gelu_(gate)))  # in place, as new memory costs as much again


class Layer(nn.Module):
    """[position convolution] -> self-attention -> [cross-attention] -> feed-forward, each added to its input.

    Holds the parts; `step` of the stack that owns the layer applies them.
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
        self_attn = attention(**heads, **attention_options)  # first, which keeps the random initial weights
        self.peg = PositionConv(dim) if peg else None
        self.self_attn = self_attn
        self.cross_attn = Attention(**heads, cross=True, num_null_kv=num_null_kv) if cross else None
        self.ff = FeedForward(dim, ff_dim)


class Stack(Checkpointed):
    """Layers that run one after another.

    Calling a stack returns the outputs of all its layers, without the final norm. Where the last output is used, the
    caller applies `norm_out` to it; stacks with `norm_out=False` have no such norm.
    """

    step: Callable[..., Tensor]  # step(layer, x, *inputs): one layer applied to x

    def __init__(self, layers: Iterable[Layer], dim: int, norm_out: bool):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm_out = Norm(dim) if norm_out else nn.Identity()

    def run(self, x: Tensor, *inputs: Any, contexts: list[Tensor] | None = None) -> list[Tensor]:
        """Outputs of all layers; layer i cross-attends to contexts[i]."""
        outputs = []
        for i, layer in enumerate(self.layers):
            x = self.recomputed(self.step, layer, x, *inputs, contexts[i] if contexts else None)
            outputs.append(x)
        return outputs


class SpatialTransformer(Stack):
    """Layers over the patches of a time slice, or over a grid of queries, with 2-D rotary positions.

    Args:
        pattern: a letter for each layer: "t" full attention, "w" attention in windows.
        peg: layers with full attention have the position convolution, which also connects the slices of a clip.
        cross: layers with full attention have cross-attention, with `num_null_kv` learned key-value pairs.
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
        windows = {"attention": WindowAttention, "window_size": window_size}
        full = {"attention": Attention, "peg": peg, "cross": cross, "num_null_kv": num_null_kv}
        layers = (Layer(**(windows if kind == "w" else full), **sizes) for kind in pattern)
        super().__init__(layers, sizes["dim"], norm_out)
        self.head_dim = sizes["head_dim"]

    def forward(
        self,
        x: Tensor,
        grid: tuple[int, int],
        contexts: list[Tensor] | None = None,
        context_grid: tuple[int, int] | None = None,
    ) -> list[Tensor]:
        """x (B, t, h*w, D), contexts[i] (B, N, D) -> the output of every layer.

        With `context_grid`, cross-attention has rotary positions, in units of the grid of x.
        """
        places = None if context_grid is None else self.angles(context_grid, x.device, grid)
        return self.run(x, grid, self.angles(grid, x.device), places, contexts=contexts)

    @staticmethod
    def step(
        layer: Layer,
        x: Tensor,
        grid: tuple[int, int],
        angles: Tensor,
        places: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """x (B, t, h*w, D); context (B, N, D) with rotary angles `places` is the same for all slices of a clip."""
        B, t, _, _ = x.shape
        if layer.peg is not None:
            x = x + layer.peg(x.unflatten(2, grid)).flatten(2, 3)
        x = x.flatten(0, 1)
        windows = isinstance(layer.self_attn, WindowAttention)
        x = x + (layer.self_attn(x, grid) if windows else layer.self_attn(x, angles=angles))
        x = x.unflatten(0, (B, t)).flatten(1, 2)
        if layer.cross_attn is not None:  # all slices as one sequence of queries, which needs no copies of the context
            own = None if places is None else angles.repeat(1, t, 1)
            x = x + layer.cross_attn.attend(x, *layer.cross_attn.keys_values(context, places), own)
        return (x + layer.ff(x)).unflatten(1, (t, -1))

    def angles(self, grid: tuple[int, int], device: torch.device, units: tuple[int, int] | None = None) -> Tensor:
        return grid_rotary_angles(*grid, self.head_dim, device, units)


class TemporalTransformer(Stack):
    """Causal layers over the time slices of one spatial position, with the position convolution alone for positions.

    Args:
        pattern: a letter "t" for each layer.
        scrambled_peg: before the position convolution, reshape tokens in (h, w, t) order to (t, h, w) without permuting
            them. The release's weights were trained with this.
    """

    def __init__(self, pattern: str, *, scrambled_peg: bool = False, norm_out: bool = True, **sizes: int):
        layers = (Layer(Attention, peg=True, causal=True, **sizes) for _ in pattern)
        super().__init__(layers, sizes["dim"], norm_out)
        self.scrambled_peg = scrambled_peg

    def forward(self, x: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """x (B, h*w, t, D) -> the output of every layer."""
        return self.run(x, grid)

    def step(self, layer: Layer, x: Tensor, grid: tuple[int, int], context: None = None) -> Tensor:
        B, _, t, _ = x.shape
        if self.scrambled_peg:
            x = x + layer.peg(x.reshape(B, t, *grid, -1)).reshape(x.shape)
        else:
            x = x + layer.peg(x.transpose(1, 2).unflatten(2, grid)).flatten(2, 3).transpose(1, 2)
        x = x.flatten(0, 1)
        x = x + layer.self_attn(x)
        return (x + layer.ff(x)).unflatten(0, (B, -1))


class SingleTokenTransformer(Stack):
    """Layers over sequences of one token, one sequence for each grid position, with cross-attention to its context."""

    def __init__(self, pattern: str, *, cross: bool = False, norm_out: bool = True, **sizes: int):
        layers = (Layer(SingleTokenAttention, cross=cross, **sizes) for _ in pattern)
        super().__init__(layers, sizes["dim"], norm_out)

    def forward(self, x: Tensor, contexts: list[Tensor] | None = None) -> list[Tensor]:
        """x (B, M, D), contexts[i] (B, M, t, D) -> the output of every layer."""
        return self.run(x, contexts=contexts)

    @staticmethod
    def step(layer: Layer, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x + layer.self_attn(x)
        if layer.cross_attn is not None:
            x = x + layer.cross_attn(x.flatten(0, 1)[:, None], context.flatten(0, 1)).view_as(x)
        return x + layer.ff(x)
