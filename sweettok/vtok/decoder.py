"""The embedded video decoder: a small transformer that makes pixels by flow matching, conditioned on states.

Letters: B batch, T frames, H W pixels, L states of width C, N tokens of width D (states, then patches of the clip).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweettok.config import positive
from sweettok.hub import CardInfo, Pretrained
from sweettok.layers.checkpointing import Checkpointed
from sweettok.layers.norm import EPS
from sweettok.layers.patching import PatchEmbed, Unpatch
from sweettok.layers.positions import sinusoids
from sweettok.pixels import check_video
from sweettok.seeds import sample_noise
from sweettok.vtok.flow import (
    Generators,
    check_batch,
    check_indices,
    check_size,
    check_states,
    draw,
    flow_loss,
    shifted,
)
from sweettok.vtok.output import VisualTokens
from sweettok.vtok.statistics import TokenStatistics

LEAST_LEVEL = 0.05  # of noise in training; predicted clips divide by the level
TIMESTEPS = 1000  # of level 1, for the sinusoids of the level


@dataclass(frozen=True)
class PixelFlowConfig:
    """Transformer of the embedded decoder; the defaults have 1.6 million parameters at 32 x 32 pixels or more."""

    state_dim: int = 128  # width of the states
    dim: int = 128  # width of the transformer
    num_layers: int = 6  # transformer blocks
    num_heads: int = 4  # attention heads; must divide `dim`
    patch_size: int = 8  # pixels; edges of clips must be multiples
    temporal_patch_size: int = 4  # k, frames of a tube; clips have k * n + 1 frames
    shift: float = 3.0  # of noise levels in training and sampling; above 1: more noise
    state_dropout: float = 0.1  # share of training clips without their states, which guidance needs
    # Rows and columns of the first states, if these are of the clip's first frame and the others of later moments at
    # equal distances, as in VTok: the former are also added to the patches at their place, the latter at their time.
    # null: all states are only attended to.
    state_grid: tuple[int, int] | None = None

    def __post_init__(self):
        names = "state_dim", "dim", "num_layers", "num_heads", "patch_size", "temporal_patch_size", "shift"
        positive(self, "decoder", *names)
        if self.dim % (2 * self.num_heads):
            raise ValueError(f"decoder.dim {self.dim} does not divide into {self.num_heads} heads of even width")
        if not 0 <= self.state_dropout < 1:
            raise ValueError(f"decoder.state_dropout must be in [0, 1); got {self.state_dropout}")
        if self.state_grid is not None:
            if len(self.state_grid) != 2 or min(self.state_grid) < 1:
                raise ValueError(f"decoder.state_grid must be numbers of rows and columns; got {self.state_grid}")
            object.__setattr__(self, "state_grid", tuple(self.state_grid))


class Block(nn.Module):
    """Self-attention and an MLP; their shifts, scales and gates come from the level and the mean state (AdaLN)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.modulation = nn.Parameter(torch.zeros(6, dim))  # added to the shared modulation of the level
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, level: Tensor, allowed: Tensor | None) -> Tensor:
        """x (B, N, D), level (B, 6, 1, D), allowed (B, 1, 1, N): which tokens are attended to -> (B, N, D)."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (level + self.modulation[:, None]).unbind(1)
        q, k, v = self.qkv(modulate(x, shift, scale)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = (F.rms_norm(part, part.shape[-1:]) for part in (q, k))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        x = x + gate * self.out(attended.transpose(1, 2).flatten(2))
        return x + gate_mlp * self.mlp(modulate(x, shift_mlp, scale_mlp))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


class PixelFlow(Pretrained, Checkpointed):
    """Makes clips from states by flow matching in pixels.

    The transformer predicts the clean clip, and the velocity follows from it: noise of whole patches has more
    dimensions than a token, so that a small transformer could not predict it. The loss is the error of the clean clip:
    that of the velocity is 1 / level^2 as large, and would hardly count where only the states tell what to show.
    """

    config_class = PixelFlowConfig
    card_info = CardInfo(
        summary="A flow-matching transformer that makes video clips from the states of a language model.",
        tags=("video", "video-generation"),
        sizes=lambda model: [("layers", f"{model.config.num_layers} of width {model.config.dim}")],
        usage=lambda model: "video = model.sample(states, frames=25, size=32, seed=0)",
        role="decoder",
    )
    state_layer = -1

    def __init__(self, config: PixelFlowConfig):
        super().__init__()
        self.config, dim = config, config.dim
        self.state_dim = config.state_dim
        self.statistics = TokenStatistics(config.state_dim)  # of the tokens that it was trained on, if it was
        self.patches = PatchEmbed(dim, config.patch_size, config.temporal_patch_size, norm=False)
        self.states = nn.Linear(config.state_dim, dim)
        self.no_states = nn.Parameter(torch.zeros(dim))  # in place of dropped states
        if config.state_grid is not None:
            self.key_states = nn.Linear(config.state_dim, dim, bias=False)
            self.later_states = nn.Linear(config.state_dim, dim, bias=False)
        self.pooled = nn.Linear(dim, dim)
        self.level = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.modulation = nn.Linear(dim, 8 * dim)  # 6 shared by the blocks, 2 of the output
        self.blocks = nn.ModuleList(Block(dim, config.num_heads) for _ in range(config.num_layers))
        self.unpatch = Unpatch(dim, config.patch_size, config.temporal_patch_size)
        for layer in (self.modulation, self.unpatch.first_frame, self.unpatch.tubes):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, noisy: Tensor, levels: Tensor, states: Tensor, mask: Tensor | None = None, drop: Tensor | None = None
    ) -> Tensor:
        """Velocity (B, 3, T, H, W) of noisy clips in [-1, 1] at levels (B,), given states (B, L, C).

        Args:
            mask: (B, L) bool, False for states to ignore.
            drop: (B,) bool, True for clips without states.
        """
        # At level 1 the clip is noise alone, which would only disturb.
        grid = self.patches(noisy * (1 - levels).view(-1, 1, 1, 1, 1))
        condition = self.states(states)
        if drop is not None:
            condition = torch.where(drop[:, None, None], self.no_states, condition)
        places = sinusoids(condition.shape[1], condition.shape[2], noisy.device)
        tokens = grid + grid_sinusoids(grid)
        if self.config.state_grid is not None:
            tokens = tokens + self._in_place(states, mask, drop, *grid.shape[1:4])
        tokens = tokens.flatten(1, 3)
        x, count = torch.cat((condition + places, tokens), dim=1), tokens.shape[1]
        allowed = None if mask is None else F.pad(mask.bool(), (0, count), value=True)[:, None, None]
        level = self.level(level_sinusoids(levels, x.shape[2])) + self.pooled(masked_mean(condition, mask))
        modulation = self.modulation(F.silu(level)).unflatten(1, (8, 1, -1))
        for block in self.blocks:
            x = self.recomputed(block, x, modulation[:, :6], allowed)
        x = modulate(x[:, -count:], modulation[:, 6], modulation[:, 7]).view_as(grid)
        return (noisy - self.unpatch(x)) / levels.clamp(min=LEAST_LEVEL).view(-1, 1, 1, 1, 1)

    def _in_place(self, states: Tensor, mask: Tensor | None, drop: Tensor | None, t: int, h: int, w: int) -> Tensor:
        """States of the first frame at their place, later ones at their time: (B, t, h, w, D); 0 for dropped ones."""
        if mask is not None:
            states = states.masked_fill(~mask.bool()[..., None], 0)
        if drop is not None:
            states = states.masked_fill(drop[:, None, None], 0)
        rows, columns = self.config.state_grid
        key = self.key_states(states[:, : rows * columns]).transpose(1, 2).unflatten(2, (rows, columns))
        placed = F.interpolate(key, (h, w), mode="nearest-exact").movedim(1, 3)[:, None]
        later = states[:, rows * columns :]
        if t == 1 or later.shape[1] == 0:
            return placed.expand(-1, t, -1, -1, -1)
        timed = F.interpolate(self.later_states(later).transpose(1, 2), t - 1, mode="nearest-exact").transpose(1, 2)
        return placed + F.pad(timed, (0, 0, 1, 0))[:, :, None, None]

    def loss(self, video: Tensor, states: Tensor, mask: Tensor | None = None, generator: Generators = None) -> Tensor:
        """Flow-matching loss, a scalar; arguments and errors as in `losses`."""
        return self.losses(video, states, mask, generator).mean()

    def losses(
        self,
        video: Tensor,
        states: Tensor,
        mask: Tensor | None = None,
        generator: Generators = None,
        drop: Tensor | None = None,
    ) -> Tensor:
        """Flow-matching loss of each clip (B,): the mean squared error of the clean clip in [-1, 1].

        Args:
            video: (B, 3, T, H, W) uint8, or float in [-0.5, 0.5].
            states: (B, L, C).
            mask: (B, L) bool, False for states to ignore.
            generator: for levels, noise and state dropout.
            drop: (B,) bool, True for clips without states; by default random in training, none in evaluation.

        Raises ValueError for other shapes, and sizes that do not divide into patches.
        """
        clean = 2 * check_video(video, check_range=False)
        self._check(clean.shape[2], tuple(clean.shape[3:]), states, mask)
        check_batch(clean, states)

        def velocity(noisy: Tensor, levels: Tensor) -> Tensor:
            dropped = drop
            if drop is None and self.training and self.config.state_dropout:
                dropped = draw(torch.rand, levels.shape, generator, levels.device) < self.config.state_dropout
            dropped = None if dropped is None else dropped.to(noisy.device)
            return self(noisy, levels.to(noisy.device), states, mask, dropped)

        return flow_loss(velocity, clean, self.config.shift, generator, LEAST_LEVEL, torch.square)

    def from_tokens(self, tokens: VisualTokens) -> Tensor:
        """Tokens -> states (B, L, C) of a decoder that was trained on tokens: standardised as in training."""
        return self.statistics.standardise(tokens.values, tokens.kinds.expand(tokens.values.shape[:2]))

    @torch.no_grad()
    def sample(
        self,
        states: Tensor,
        frames: int,
        size: int | tuple[int, int],
        *,
        mask: Tensor | None = None,
        negative: Tensor | None = None,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        steps: int = 16,
        cfg_scale: float = 1.0,
    ) -> Tensor:
        """Clips (B, 3, frames, H, W) in [-0.5, 0.5] from states (B, L, C), by Euler steps.

        A clip depends on (seed, its index), its states and the settings; the batch only changes rounding.

        Args:
            size: (H, W), or one number for both.
            mask: (B, L) bool, False for states to ignore.
            negative: (B, L, C) states of guidance. Default: no states, as learned by state dropout.
            indices: of the samples; 0, 1, 2, ... by default.
            cfg_scale: guidance, unconditional + scale * (conditional - unconditional); 1: none.

        Raises ValueError for wrong shapes and sizes, and for guidance of a model trained without state dropout.
        """
        height, width = self._check(frames, size, states, mask)
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if cfg_scale != 1 and negative is None and not self.config.state_dropout:
            raise ValueError("guidance needs decoder.state_dropout above 0 in training, or negative states")
        noise = sample_noise((3, frames, height, width), seed, check_indices(indices, len(states)))
        x, drop = noise.to(states.device), None
        if cfg_scale != 1:
            if negative is None:
                drop = torch.arange(2 * len(x), device=x.device) >= len(x)
            states = torch.cat((states, states if negative is None else negative))
            mask = None if mask is None else torch.cat((mask, mask))
        schedule = shifted(torch.linspace(1, 0, steps + 1), self.config.shift).to(x.device)
        for level, following in zip(schedule[:-1], schedule[1:], strict=True):
            inputs = x if cfg_scale == 1 else torch.cat((x, x))
            velocity = self(inputs, level.expand(len(inputs)), states, mask, drop)
            if cfg_scale != 1:
                conditional, unconditional = velocity.chunk(2)
                velocity = unconditional + cfg_scale * (conditional - unconditional)
            x = x + (following - level) * velocity
        return (x / 2).clamp(-0.5, 0.5)

    def _check(self, frames: int, size: int | tuple[int, int], states: Tensor, mask: Tensor | None) -> tuple[int, int]:
        check_states(states, mask, self.state_dim)
        grid = self.config.state_grid
        if grid is not None and states.shape[1] < grid[0] * grid[1]:
            raise ValueError(f"this decoder expects at least {grid[0]} x {grid[1]} states, got {states.shape[1]}")
        return check_size(frames, size, self.config.temporal_patch_size, self.config.patch_size)


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, L, D) -> (B, D), over the tokens of the mask (B, L); zeros where it has none."""
    if mask is None:
        return x.mean(1)
    weight = mask.to(x.dtype)[..., None]
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


def level_sinusoids(levels: Tensor, dim: int) -> Tensor:
    """Levels (B,) in [0, 1] -> (B, dim), sines and cosines of timesteps in [0, 1000]."""
    frequencies = 10000 ** (-torch.arange(0, 1, 2 / dim, device=levels.device))
    angles = TIMESTEPS * levels[:, None].float() * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def grid_sinusoids(grid: Tensor) -> Tensor:
    """For a grid of tokens (B, t, h, w, D): (t, h, w, D), a half of the channels for t, a quarter for y and for x."""
    t, h, w, dim = grid.shape[1:]
    parts = [
        sinusoids(count, part, grid.device)
        for count, part in ((t, dim // 2), (h, dim // 4), (w, dim - dim // 2 - dim // 4))
    ]
    places = parts[0][:, None, None], parts[1][None, :, None], parts[2][None, None]
    return torch.cat([place.expand(t, h, w, -1) for place in places], dim=-1)
