"""DQAE encoder: spatial queries attend to appearance, temporal queries to motion.

Letters: B batch, t h w latent grid, S spatial queries, M = h*w temporal queries, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sweettok.layers.norm import EPS
from sweettok.layers.patching import PatchEmbed
from sweettok.layers.transformer import SingleTokenTransformer, SpatialTransformer, TemporalTransformer
from sweettok.tokenizer.config import TokenizerConfig
from sweettok.tokenizer.layout import BRANCHES


class Encoder(nn.Module):
    """Base of the encoders; `spatial_out` and `temporal_out` are the last layers of their two kinds of latents."""

    def latents(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, T, H, W) in [-0.5, 0.5] -> latents (B, S, latent) and (B, M, latent), before normalisation."""
        raise NotImplementedError

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, T, H, W) in [-0.5, 0.5] -> unit vectors (B, S, latent) and (B, M, latent), float32.

        For images (T = 1) the temporal vectors are None.
        """
        spatial, temporal = self.latents(video)
        unit = normalize(spatial.float(), dim=-1)
        return unit, None if temporal is None else normalize(temporal.float(), dim=-1)

    @torch.no_grad()
    def start_centred(self, video: Tensor) -> dict[str, Tensor]:
        """Shift fresh output layers so that the latents of `video` have mean 0; return their deviations by branch."""
        deviations = {}
        for name, latents in zip(BRANCHES, self.latents(video), strict=True):
            if latents is not None:
                centre = latents.flatten(0, 1).mean(0)
                getattr(self, f"{name}_out")[-1].bias.sub_(centre)
                deviations[name] = normalize(latents.flatten(0, 1) - centre, dim=-1).std(0).mean()
        return deviations


class QueryEncoder(Encoder):
    """Patch grid -> one vector per spatial query and one per temporal query (paper, decoupled query autoencoder).

    Without `motion` there is no temporal branch, and clips are images (one frame).
    """

    def __init__(self, config: TokenizerConfig, motion: bool = True):
        super().__init__()
        block, dim, latent = config.block, config.block.dim, config.latent_dim
        self.grid = config.grid[1:]
        self.query_grid = config.spatial_query_grid
        self.context_grid = self.grid if config.cross_positions else None
        self.spatial_source, self.temporal_source = config.spatial_source, config.temporal_source
        self.patches = PatchEmbed(dim, *config.proxy.patches, norm=config.patch_norm)

        self.spatial_queries = nn.Parameter(torch.zeros(config.num_spatial_queries, dim))
        self.spatial_positions = nn.Parameter(torch.zeros(config.num_spatial_queries, dim))
        self.spatial = SpatialTransformer(config.encoder_spatial, **block.spatial, peg=True, norm_out=False)
        self.spatial_query = SpatialTransformer(config.encoder_spatial, **block.spatial, cross=True)
        self.spatial_out = latent_head(dim, latent)

        if not motion:
            self.patches.tubes = self.temporal_queries = self.temporal_positions = None
            return
        # Temporal query n belongs to position n of the grid (row-major).
        self.temporal_queries = nn.Parameter(torch.zeros(config.num_temporal_queries, dim))
        self.temporal_positions = nn.Parameter(torch.zeros(config.num_temporal_queries, dim))
        self.temporal = TemporalTransformer(config.encoder_temporal, **block.temporal, norm_out=False)
        self.temporal_query = SingleTokenTransformer(config.encoder_temporal, **block.layer, cross=True)
        self.temporal_out = latent_head(dim, latent)

    def latents(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        patches = self.patches(video)
        if video.shape[2] == 1:
            return self.spatial_branch(patches), None
        return self.spatial_branch(patches), self.temporal_branch(self.motion(video, patches))

    def spatial_branch(self, patches: Tensor) -> Tensor:
        """Patches (B, t, h, w, D) -> (B, S, latent), before normalisation."""
        slices = patches if self.spatial_source == "all_slices" else patches[:, :1]
        layers = self.spatial(slices.flatten(2, 3), self.grid)
        queries = (self.spatial_queries + self.spatial_positions).expand(patches.shape[0], 1, -1, -1)
        contexts = [layer.mean(1) for layer in layers]
        x = self.spatial_query(queries, self.query_grid, contexts, self.context_grid)[-1].squeeze(1)
        return self.spatial_out(self.spatial_query.norm_out(x))

    def motion(self, video: Tensor, patches: Tensor) -> Tensor:
        """Clip and its patches (B, t, h, w, D) -> differences of the slices after the first, (B, t - 1, h, w, D)."""
        if self.temporal_source == "first_frame_residuals":
            return patches[:, 1:] - patches[:, :1]
        first = patches[:, :1] if self.temporal_source == "differences" else self.patches.still(video)
        return patches[:, 1:] - torch.cat((first, patches[:, 1:-1]), dim=1)

    def temporal_branch(self, motion: Tensor) -> Tensor:
        """Differences (B, t - 1, h, w, D) -> (B, M, latent), before normalisation."""
        motion = motion.flatten(2, 3).transpose(1, 2).contiguous()
        layers = self.temporal(motion, self.grid)
        queries = (self.temporal_queries + self.temporal_positions).expand(motion.shape[0], -1, -1)
        x = self.temporal_query(queries, layers)[-1]
        return self.temporal_out(self.temporal_query.norm_out(x))


def latent_head(dim: int, latent: int) -> nn.Sequential:
    """Final norm and the two linear layers between a query and its latent vector."""
    return nn.Sequential(nn.LayerNorm(dim, eps=EPS), nn.Linear(dim, dim), nn.Linear(dim, latent))
