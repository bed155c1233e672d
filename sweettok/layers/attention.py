"""Transformer parts of the tokenizers: attention, windows, feed-forward, position convolution, layers.

Letters: R rows (independent sequences), N tokens of a row, D width, t h w latent grid. Every layer norm uses eps 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sweettok.proxy.config import BlockConfig

EPS = 1e-5
LOGIT_SCALE = 8.0  # queries and keys are unit vectors, so the softmax needs a temperature of its own
ROTARY_THETA = 10000.0


class Norm(nn.Module):
    """Layer norm with a learned scale and a shift that is stored and applied but never trained."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta, EPS)


def rotary_angles(height: int, width: int, head_dim: int, device: torch.device) -> Tensor:
    """(2, height * width, head_dim / 2): cosine and sine of each place, row-major; pair 2i turns by x, 2i+1 by y."""
    frequencies = ROTARY_THETA ** (-torch.arange(0, head_dim, 4, device=device, dtype=torch.float32) / head_dim)
    y, x = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
        indexing="ij",
    )
    turns = torch.stack((x.reshape(-1, 1) * frequencies, y.reshape(-1, 1) * frequencies), dim=-1).flatten(1)
    return torch.stack((turns.cos(), turns.sin()))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn channel pairs (2p, 2p+1) of x (..., N, head_dim) by `angles` (2, N, head_dim / 2), in float32."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


class Attention(nn.Module):
    """Multi-head attention over unit-length queries and keys, no biases.

    Without `cross`, queries see the normed input and keys and values the input as it is. With `cross`, keys and values
    come from `context_norm(context)`, preceded by `num_null_kv` learned pairs.
    """

    def __init__(self, block: BlockConfig, cross: bool = False, causal: bool = False, num_null_kv: int = 0):
        super().__init__()
        inner = block.num_heads * block.head_dim
        self.num_heads, self.causal = block.num_heads, causal
        self.norm = Norm(block.dim)
        self.context_norm = Norm(block.dim) if cross else None
        self.to_q = nn.Linear(block.dim, inner, bias=False)
        self.to_kv = nn.Linear(block.dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, block.dim, bias=False)
        self.q_scale = nn.Parameter(torch.ones(block.head_dim))
        self.k_scale = nn.Parameter(torch.ones(block.head_dim))
        # Rows alternate key, value.
        self.null_kv = (
            nn.Parameter(torch.randn(block.num_heads, 2 * num_null_kv, block.head_dim)) if num_null_kv else None
        )

    def heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "r n (heads d) -> r heads n d", heads=self.num_heads)

    def keys_values(self, context: Tensor, angles: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Context (R, N, D) -> keys and values (R, heads, null + N, head_dim), ready for `attend`.

        Callers whose rows share one context compute this once and expand it.
        """
        if self.context_norm is not None:
            context = self.context_norm(context)
        k, v = map(self.heads, self.to_kv(context).chunk(2, dim=-1))
        if angles is not None:
            k = rotate(k, angles)
        if self.null_kv is not None:
            null_k, null_v = self.null_kv.unflatten(1, (-1, 2)).unbind(2)
            k = torch.cat((null_k.to(k.dtype).expand(len(k), -1, -1, -1), k), dim=2)
            v = torch.cat((null_v.to(v.dtype).expand(len(v), -1, -1, -1), v), dim=2)
        return (F.normalize(k.float(), dim=-1) * self.k_scale).to(v.dtype), v

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, angles: Tensor | None = None) -> Tensor:
        """Tokens (R, N, D) over prepared keys and values -> (R, N, D)."""
        q = self.heads(self.to_q(self.norm(x)))
        if angles is not None:
            q = rotate(q, angles)
        q = (F.normalize(q.float(), dim=-1) * self.q_scale).to(values.dtype)
        out = F.scaled_dot_product_attention(q, keys, values, is_causal=self.causal, scale=LOGIT_SCALE)
        return self.to_out(rearrange(out, "r heads n d -> r n (heads d)"))

    def forward(self, x: Tensor, context: Tensor | None = None, angles: Tensor | None = None) -> Tensor:
        keys, values = self.keys_values(x if context is None else context, angles)
        return self.attend(x, keys, values, angles)


class SingleTokenAttention(nn.Module):
    """Self-attention on sequences of one token: the softmax is 1, so only the value path has an effect."""

    def __init__(self, block: BlockConfig):
        super().__init__()
        inner = block.num_heads * block.head_dim
        self.head_dim = block.head_dim
        self.to_v = nn.Linear(block.dim, inner, bias=False)
        self.to_out = nn.Linear(inner, block.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(self.to_v(x))


class WindowAttention(nn.Module):
    """Attention inside square windows of the token grid, with a learned bias for each relative position."""

    def __init__(self, block: BlockConfig):
        super().__init__()
        inner, size = block.num_heads * block.head_dim, block.window_size
        self.num_heads, self.window_size = block.num_heads, size
        self.norm = Norm(block.dim)
        self.qkv = nn.Linear(block.dim, 3 * inner, bias=False)
        self.proj = nn.Linear(inner, block.dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * size - 1) ** 2, block.num_heads))
        self.register_buffer("relative_position_index", relative_position_index(size), persistent=False)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        size, (height, width) = self.window_size, grid
        windows = rearrange(
            self.norm(x), "r (y wy x wx) d -> (r y x) (wy wx) d", y=height // size, wy=size, x=width // size, wx=size
        )
        q, k, v = rearrange(self.qkv(windows), "r n (qkv heads d) -> qkv r heads n d", qkv=3, heads=self.num_heads)
        bias = rearrange(self.relative_position_bias_table[self.relative_position_index], "q k heads -> heads q k")
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)[None])
        out = self.proj(rearrange(out, "r heads n d -> r n (heads d)"))
        return rearrange(out, "(r y x) (wy wx) d -> r (y wy x wx) d", y=height // size, wy=size, x=width // size)


def relative_position_index(size: int) -> Tensor:
    """(size^2, size^2) rows of the bias table: (y_q - y_k + size - 1) * (2 size - 1) + (x_q - x_k + size - 1)."""
    places = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"), dim=-1).view(-1, 2)
    difference = places[:, None] - places[None] + size - 1
    return difference[..., 0] * (2 * size - 1) + difference[..., 1]


class FeedForward(nn.Module):
    """Gated GELU layer (GEGLU): Linear to value and gate halves, no biases."""

    def __init__(self, block: BlockConfig):
        super().__init__()
        self.norm = nn.LayerNorm(block.dim, eps=EPS)
        self.up = nn.Linear(block.dim, 2 * block.ff_dim, bias=False)
        self.down = nn.Linear(block.ff_dim, block.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return self.down(value * F.gelu(gate))


class PositionConv(nn.Module):
    """PEG: depthwise 3x3x3 convolution over the latent grid, zero-padded in space and causally in time."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv3d(dim, dim, kernel_size=3, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, t, h, w, D) -> (B, t, h, w, D)."""
        padded = F.pad(x, (0, 0, 1, 1, 1, 1, 2, 0))
        return self.conv(padded.movedim(-1, 1)).movedim(1, -1)


class Layer(nn.Module):
    """[position convolution] -> self-attention -> [cross-attention] -> feed-forward, each added to its input."""

    def __init__(
        self, block: BlockConfig, attention: nn.Module, peg: bool = False, cross: bool = False, num_null_kv: int = 0
    ):
        super().__init__()
        self.peg = PositionConv(block.dim) if peg else None
        self.self_attn = attention
        self.cross_attn = Attention(block, cross=True, num_null_kv=num_null_kv) if cross else None
        self.ff = FeedForward(block)


class Transformer(nn.Module):
    """A stack of layers; where a list of outputs is used, they are un-normed, and `norm_out` is left out if unused."""

    norm_out: Any  # a Norm, or None; who asks for it calls it

    def __init__(self, block: BlockConfig, layers: list[Layer], norm_out: bool):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm_out = Norm(block.dim) if norm_out else None
        self.gradient_checkpointing = False

    def run(self, layer: Layer, *inputs) -> Tensor:
        """One layer, recomputed in the backward pass where gradient checkpointing is on."""
        return self.recomputed(self.step, layer, *inputs)

    def recomputed(self, function: Callable[..., Tensor], *inputs) -> Tensor:
        """`function(*inputs)`, recomputed in the backward pass where gradient checkpointing is on."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)


class SpatialTransformer(Transformer):
    """Layers over the places of a slice, or over a grid of queries, with 2-D rotary positions; `w` layers use windows.

    The position convolution joins the slices of a clip. Layers with full attention carry it, and cross-attention,
    where asked for; window layers carry neither.
    """

    def __init__(
        self,
        block: BlockConfig,
        pattern: str,
        peg: bool = False,
        cross: bool = False,
        num_null_kv: int = 0,
        norm_out: bool = True,
    ):
        full = {"peg": peg, "cross": cross, "num_null_kv": num_null_kv}
        layers = [
            Layer(block, WindowAttention(block)) if kind == "w" else Layer(block, Attention(block), **full)
            for kind in pattern
        ]
        super().__init__(block, layers, norm_out)
        self.head_dim = block.head_dim

    def angles(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        return rotary_angles(*grid, self.head_dim, device)

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

    def forward(self, x: Tensor, grid: tuple[int, int], contexts: list[Tensor] | None = None) -> list[Tensor]:
        """x (B, t, h*w, D) -> the output of every layer; layer i cross-attends to contexts[i] (B, N, D)."""
        angles, outputs = self.angles(grid, x.device), []
        for i, layer in enumerate(self.layers):
            x = self.run(layer, x, grid, angles, contexts[i] if contexts else None)
            outputs.append(x)
        return outputs


class TemporalTransformer(Transformer):
    """Causal layers over the slices of one place, with the position convolution and no other positions."""

    def __init__(self, block: BlockConfig, pattern: str, norm_out: bool = True):
        super().__init__(block, [Layer(block, Attention(block, causal=True), peg=True) for _ in pattern], norm_out)
        self.scrambled = block.temporal_peg == "scrambled"

    def step(self, layer: Layer, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """x (B, h*w, t, D)."""
        B, _, t, _ = x.shape
        if self.scrambled:  # reads the rows' memory as if it were already in (t, h, w) order
            x = x + layer.peg(x.reshape(B, t, *grid, -1)).reshape(x.shape)
        else:
            x = x + layer.peg(x.transpose(1, 2).unflatten(2, grid)).flatten(2, 3).transpose(1, 2)
        x = x.flatten(0, 1)
        x = x + layer.self_attn(x)
        return (x + layer.ff(x)).unflatten(0, (B, -1))

    def forward(self, x: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """x (B, h*w, t, D) -> the output of every layer."""
        outputs = []
        for layer in self.layers:
            x = self.run(layer, x, grid)
            outputs.append(x)
        return outputs


class PlaceTransformer(Transformer):
    """Layers over single tokens, one per place of the grid; each may look at its own place's context, nowhere else."""

    def __init__(self, block: BlockConfig, pattern: str, cross: bool = False, norm_out: bool = True):
        super().__init__(block, [Layer(block, SingleTokenAttention(block), cross=cross) for _ in pattern], norm_out)

    @staticmethod
    def step(layer: Layer, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, M, D); context (B, M, t, D)."""
        x = x + layer.self_attn(x)
        if layer.cross_attn is not None:
            x = x + layer.cross_attn(x.flatten(0, 1)[:, None], context.flatten(0, 1)).view_as(x)
        return x + layer.ff(x)

    def forward(self, x: Tensor, contexts: list[Tensor] | None = None) -> list[Tensor]:
        """x (B, M, D), contexts[i] (B, M, t, D) -> the output of every layer."""
        outputs = []
        for i, layer in enumerate(self.layers):
            x = self.run(layer, x, contexts[i] if contexts else None)
            outputs.append(x)
        return outputs


def init_linears(model: nn.Module, dim: int) -> None:
    """Truncated normal weights and zero biases for every linear layer.

    The deviation is the release's 0.02 at its width of 512 and grows as `dim` narrows, so that signals pass narrow
    models as strongly.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02 * (512 / dim) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def set_gradient_checkpointing(model: nn.Module, enabled: bool) -> None:
    """Recompute every layer in the backward pass instead of keeping its activations; gradients are the same."""
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = enabled
