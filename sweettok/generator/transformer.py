"""The generator's decoder-only transformer, with a cache of keys and values.

Letters: B batch, N positions, C width, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweettok.generator.config import GeneratorConfig
from sweettok.layers.attention import scaled_dot_product
from sweettok.layers.checkpointing import Checkpointed
from sweettok.layers.positions import rotary_angles, rotate

INIT_STD, INIT_DIM = 0.02, 1536  # the release's standard deviation and width


class Cache:
    """Keys and values of past positions, in memory for `length` positions that is allocated once."""

    def __init__(self, num_layers: int, length: int):
        self.length, self.past = length, 0
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """New keys and values (B, H, n, D) of a layer -> all of that layer (B, H, past + n, D)."""
        kept = self.layers[layer]
        if kept is None:
            batch, heads, _, width = keys.shape
            shape = batch, heads, self.length, width
            # Zeros, since attention multiplies what a mask hides by zero, and NaN would stay NaN.
            kept = self.layers[layer] = keys.new_zeros(shape), values.new_zeros(shape)
        all_keys, all_values = kept
        stop = self.past + keys.shape[2]
        all_keys[:, :, self.past : stop] = keys
        all_values[:, :, self.past : stop] = values
        return all_keys[:, :, :stop], all_values[:, :, :stop]

    def mask(self, count: int, device: torch.device) -> Tensor | None:
        """Which positions each of `count` new ones attends to; None where attention needs no mask for it."""
        if not self.past or count == 1:
            return None
        return torch.ones(count, self.past + count, dtype=torch.bool, device=device).tril(self.past)


class StepCache:
    """A filled cache, to which one position is added at a place that is a tensor: steps differ in values alone.

    Args:
        layers: keys and values of each layer, as in `Cache`; they are changed in place.
        past: (1,) number of past positions.
        length: positions that attention reads, at least past + 1; a mask hides those that do not exist yet.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], past: Tensor, length: int):
        self.layers, self.past, self.length = layers, past, length
        self.visible = torch.arange(length, device=past.device) <= past

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        for kept, new in zip(self.layers[layer], (keys, values), strict=True):
            kept.index_copy_(2, self.past, new)
        all_keys, all_values = self.layers[layer]
        return all_keys[:, :, : self.length], all_values[:, :, : self.length]

    def mask(self, count: int, device: torch.device) -> Tensor:
        return self.visible[None]


class Linear(nn.Linear):
    """nn.Linear for sampling up to 16 rows on a CPU, where matrix libraries repack large weights for every product.

    The transposed product of 2 to 4 rows, and for more rows blocks of weights that fit a core's cache, take up to a
    third less time (scripts/bench/generator.py). Weights that fit the cache as they are stay whole.
    """

    BLOCK = 256
    CACHED = 2**18  # weights

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling() or self.bias is None:
            return super().forward(x)
        rows = x.numel() // self.in_features
        if not 1 < rows <= 16 or self.weight.numel() <= self.CACHED:
            return super().forward(x)
        if rows <= 4:
            return torch.addmm(self.bias[:, None], self.weight, x.flatten(0, -2).T).T.unflatten(0, x.shape[:-1])
        blocks = zip(self.weight.split(self.BLOCK), self.bias.split(self.BLOCK), strict=True)
        return torch.cat([F.linear(x, weight, bias) for weight, bias in blocks], dim=-1)


class CausalAttention(nn.Module):
    """Multi-head causal self-attention."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = Linear(config.dim, 3 * config.dim)
        self.out = Linear(config.dim, config.dim)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=1e-6) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(config.head_dim, eps=1e-6) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, angles: Tensor | None, cache: Cache | StepCache | None, layer: int) -> Tensor:
        """x (B, N, C), which follows the positions in `cache`; angles (2, N, D / 2) of rotary positions."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if angles is not None:
            q, k = rotate(q, angles).to(v.dtype), rotate(k, angles).to(v.dtype)
        mask = None
        if cache is not None:
            k, v = cache.append(layer, k, v)
            mask = cache.mask(x.shape[1], x.device)
        causal = 1 < q.shape[2] == k.shape[2]
        y = scaled_dot_product(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm attention and feed-forward layer, with exact GELU and biases."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim)
        self.attention = CausalAttention(config)
        self.norm2 = nn.LayerNorm(config.dim)
        inner = 4 * config.dim
        self.mlp = nn.Sequential(Linear(config.dim, inner), nn.GELU(), Linear(inner, config.dim))

    def forward(
        self, x: Tensor, angles: Tensor | None = None, cache: Cache | StepCache | None = None, layer: int = 0
    ) -> Tensor:
        x = x + self.attention(self.norm1(x), angles, cache, layer)
        return x + self.mlp(self.norm2(x))


class CausalTransformer(Checkpointed):
    """Ids -> hidden states, one per position, from which `logits` predicts the next id.

    The defaults are the release's (the GPT of Net2NetTransformer): learned positions and an untied head.
    """

    def __init__(self, config: GeneratorConfig, vocab_size: int, block_size: int):
        super().__init__()
        self.config, self.block_size = config, block_size
        self.tokens = nn.Embedding(vocab_size, config.dim)
        learned = config.positions == "learned"
        self.positions = nn.Parameter(torch.empty(block_size, config.dim)) if learned else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim)
        self.head = None if config.tied_head else nn.Linear(config.dim, vocab_size, bias=False)
        self.init_weights()

    def forward(self, ids: Tensor, cache: Cache | StepCache | None = None) -> Tensor:
        """ids (B, N) -> (B, N, C). With a cache, the ids follow those in it and are added to it.

        Raises ValueError for more positions than `block_size`.
        """
        start = cache.past if cache is not None else 0
        stop = start + ids.shape[1]
        if not isinstance(cache, StepCache) and stop > self.block_size:
            raise ValueError(f"{stop} positions exceed this generator's block of {self.block_size}")
        x = self.tokens(ids)
        angles = None
        if self.positions is not None:
            x = x + (self.positions[start] if isinstance(cache, StepCache) else self.positions[start:stop])
        else:
            angles = rotary_angles(start, ids.shape[1], self.config.head_dim, ids.device)
        for layer, block in enumerate(self.blocks):
            x = self.recomputed(block, x, angles, cache, layer)
        if isinstance(cache, Cache):
            cache.past = stop
        return self.norm(x)

    def logits(self, hidden: Tensor, ids: slice = slice(None)) -> Tensor:
        """(..., C) -> logits (..., n) of a range of ids, or of all."""
        weight = self.tokens.weight if self.head is None else self.head.weight
        return F.linear(hidden, weight[ids])

    def init_weights(self) -> None:
        """Normal weights with standard deviation 0.02, more in models narrower than the release's; biases 0."""
        std = INIT_STD * max(1.0, INIT_DIM / self.config.dim) ** 0.5
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.positions is not None:
            nn.init.zeros_(self.positions)
