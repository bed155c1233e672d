"""DQAE decoder: quantized queries -> logits over the proxy's codes at every position of the latent grid.

Letters: B batch, t h w latent grid, S spatial queries, M = h*w temporal queries, D width, K proxy codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sweettok.layers.attention import Attention
from sweettok.layers.norm import EPS
from sweettok.layers.positions import sinusoids
from sweettok.layers.transformer import (
    FeedForward,
    SingleTokenTransformer,
    SpatialTransformer,
    TemporalTransformer,
)
from sweettok.tokenizer.config import TokenizerConfig

HEAD_SHARPNESS = 6.0  # norm of a unit code's row in a head that starts from the codes


class Decoder(nn.Module):
    """Base of the decoders: `head` predicts codes, `positions` has a row for each position of the latent grid."""

    grid: tuple[int, int]
    positions: nn.Parameter  # (M, D)
    spatial: SpatialTransformer
    head: nn.Sequential

    def logits(self, x: Tensor) -> Tensor:
        """Output of the spatial layers (B, t, M, D) -> logits (B, K, t, h, w)."""
        return self.head(self.spatial.norm_out(x)).unflatten(2, self.grid).movedim(-1, 1)

    @torch.no_grad()
    def start_head(self, codes: Tensor) -> None:
        """Make the initial logits similarities to the proxy's codes (K, c), so that similar codes learn together."""
        layer = self.head[-1]
        directions = nn.init.orthogonal_(torch.empty(layer.in_features, codes.shape[1])).T.to(codes)
        layer.weight.copy_(HEAD_SHARPNESS * codes @ directions)
        layer.bias.zero_()


class QueryDecoder(Decoder):
    """Latents of both branches -> logits (B, K, t, h, w), all slices at once (release).

    For images, temporal latents and motion blocks are not used; without `motion` the decoder has none.
    """

    def __init__(self, config: TokenizerConfig, motion: bool = True):
        super().__init__()
        block, dim, latent, null = config.block, config.block.dim, config.latent_dim, config.num_null_kv
        self.grid = config.grid[1:]
        self.query_grid = config.spatial_query_grid
        self.context_grid = self.query_grid if config.cross_positions else None
        self.motion_every = len(config.decoder_spatial) // len(config.decoder_temporal)

        self.spatial_in = latent_input(latent, dim)
        self.spatial_positions = nn.Parameter(torch.zeros(config.num_spatial_queries, dim))
        self.spatial_latent = SpatialTransformer(config.decoder_spatial, **block.spatial, norm_out=False)

        self.temporal_positions = None
        if motion:
            self.temporal_in = latent_input(latent, dim)
            self.temporal_positions = nn.Parameter(torch.zeros(config.num_temporal_queries, dim))
            self.temporal_latent = SingleTokenTransformer(config.decoder_temporal, **block.layer, norm_out=False)

        self.slice_positions = config.slice_positions
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.positions = nn.Parameter(torch.zeros(config.num_temporal_queries, dim))
        self.spatial = SpatialTransformer(
            config.decoder_spatial, **block.spatial, peg=True, cross=True, num_null_kv=null
        )
        if motion:
            self.motion = nn.ModuleList(MotionBlock(config) for _ in config.decoder_temporal)
        self.head = code_head(config)

    def forward(self, spatial: Tensor, temporal: Tensor | None, num_slices: int) -> Tensor:
        """Quantized (B, S, latent) and (B, M, latent), None for images -> logits (B, K, num_slices, h, w)."""
        appearance = (self.spatial_in(spatial) + self.spatial_positions)[:, None]
        appearance = [x.squeeze(1) for x in self.spatial_latent(appearance, self.query_grid)]
        motion = None
        if temporal is not None:
            motion = self.temporal_latent(self.temporal_in(temporal) + self.temporal_positions)
        x = (self.mask_token + self.positions).expand(spatial.shape[0], 1, -1, -1)
        return self.logits(self.slices(x, appearance, motion, num_slices))

    def slices(self, x: Tensor, appearance: list[Tensor], motion: list[Tensor] | None, num_slices: int) -> Tensor:
        """Grid (B, 1, M, D), latents (B, S, D) and (B, M, D) of each layer -> (B, num_slices, M, D)."""
        angles = self.spatial.angles(self.grid, x.device)
        places = None if self.context_grid is None else self.spatial.angles(self.context_grid, x.device, self.grid)
        if self.slice_positions:
            x = x + sinusoids(num_slices, x.shape[-1], x.device)[:, None]
        for i, layer in enumerate(self.spatial.layers):
            # Without slice positions, all slices start equal. Only the zero padding of the causal convolution makes
            # them differ, two more slices with each one, so the equal slices at the end are computed once.
            grown = min(num_slices, x.shape[1] + 2) if layer.peg is not None else x.shape[1]
            x = self.spatial.recomputed(
                self.spatial.step, layer, extended(x, grown), self.grid, angles, places, appearance[i]
            )
            if motion is not None and (i + 1) % self.motion_every == 0:
                j = i // self.motion_every
                x = self.spatial.recomputed(self.motion[j], x, motion[j])
        return extended(x, num_slices)


class FirstFrameDecoder(QueryDecoder):
    """The first slice from the spatial latents alone; repeated, it is the input of the layers that add motion (paper).

    The paper does not say how its temporal decoder tells the repeated slices apart: here by sinusoids of their time.
    """

    def __init__(self, config: TokenizerConfig, motion: bool = True):
        super().__init__(config, motion)
        if motion:
            self.temporal = TemporalTransformer(config.decoder_temporal, **config.block.layer, norm_out=False)

    def slices(self, x: Tensor, appearance: list[Tensor], motion: list[Tensor] | None, num_slices: int) -> Tensor:
        first = self.spatial(x, self.grid, appearance, self.context_grid)[-1]
        if motion is None:
            return first
        times = sinusoids(num_slices - 1, first.shape[-1], first.device)
        later = first + times[:, None]
        for layer, block, latent in zip(self.temporal.layers, self.motion, motion, strict=True):
            rows = self.temporal.recomputed(self.temporal.step, layer, later.transpose(1, 2), self.grid)
            later = self.temporal.recomputed(block, rows.transpose(1, 2), latent)
        return torch.cat((first, later), dim=1)


class MotionBlock(nn.Module):
    """Cross-attention of all slices at position n to the temporal latent of position n, then feed-forward."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        block = config.block
        self.cross_attn = Attention(**block.heads, cross=True, num_null_kv=config.num_null_kv)
        self.ff = FeedForward(block.dim, block.ff_dim)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """x (B, t, M, D), latent (B, M, D) -> (B, t, M, D)."""
        B, _, M, _ = x.shape
        rows = x.transpose(1, 2).flatten(0, 1)
        rows = rows + self.cross_attn(rows, latent.flatten(0, 1)[:, None])
        return (rows + self.ff(rows)).unflatten(0, (B, M)).transpose(1, 2)


def latent_input(latent: int, dim: int) -> nn.Sequential:
    """The two linear layers between a code and the decoder."""
    return nn.Sequential(nn.Linear(latent, dim), nn.Linear(dim, dim))


def code_head(config: TokenizerConfig) -> nn.Sequential:
    """The layers between the decoder and the logits over the proxy's codes."""
    return nn.Sequential(
        nn.LayerNorm(config.block.dim, eps=EPS),
        nn.Linear(config.block.dim, config.head_hidden),
        nn.Tanh(),
        nn.Linear(config.head_hidden, config.proxy.num_codes),
    )


def extended(x: Tensor, num_slices: int) -> Tensor:
    """(B, t, M, D) -> (B, num_slices, M, D), its last slice repeated."""
    return torch.cat((x, x[:, -1:].expand(-1, num_slices - x.shape[1], -1, -1)), dim=1)
