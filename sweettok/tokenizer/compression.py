"""What the paper compares its queries with: one set of queries for all patches, and linear down-sampling.

Both give as many tokens as the two branches do, S with words of the spatial lists and M with words of the temporal
lists, so that ids have the same layout. Letters: B batch, t h w latent grid, S spatial and M = h*w temporal tokens, D
width, K proxy codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sweettok.layers.patching import PatchEmbed
from sweettok.layers.positions import sinusoids
from sweettok.layers.transformer import SpatialTransformer, TemporalTransformer
from sweettok.tokenizer.config import TokenizerConfig
from sweettok.tokenizer.decoder import Decoder, FirstFrameDecoder, QueryDecoder, code_head, latent_input
from sweettok.tokenizer.encoder import Encoder, QueryEncoder, latent_head


class FlatEncoder(Encoder):
    """One set of queries attends to the patches of all slices (as LARP): none belongs to a position or to motion.

    The first S queries choose spatial words, the other M temporal words. An image has the first S only.
    """

    def __init__(self, config: TokenizerConfig, motion: bool = True):
        super().__init__()
        block, dim, latent = config.block, config.block.dim, config.latent_dim
        self.grid = config.grid[1:]
        self.patches = patch_embedding(config, motion)
        self.positions = nn.Parameter(torch.zeros(config.num_temporal_queries, dim))
        self.spatial = SpatialTransformer(config.encoder_spatial, **block.spatial, peg=True, norm_out=False)
        self.spatial_queries = nn.Parameter(torch.zeros(config.num_spatial_queries, dim))
        self.query = SpatialTransformer("t" * len(config.encoder_spatial), **block.spatial, cross=True)
        self.spatial_out = latent_head(dim, latent)
        if motion:
            self.temporal_queries = nn.Parameter(torch.zeros(config.num_temporal_queries, dim))
            self.temporal_out = latent_head(dim, latent)

    def latents(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        x, image = self.patches(video).flatten(2, 3), video.shape[2] == 1
        x = x + self.positions + sinusoids(x.shape[1], x.shape[-1], x.device)[:, None]
        contexts = [layer.flatten(1, 2) for layer in self.spatial(x, self.grid)]
        queries = self.spatial_queries if image else torch.cat((self.spatial_queries, self.temporal_queries))
        y = self.query(queries.expand(len(x), 1, -1, -1), (1, len(queries)), contexts)[-1].squeeze(1)
        y, S = self.query.norm_out(y), len(self.spatial_queries)
        return self.spatial_out(y[:, :S]), None if image else self.temporal_out(y[:, S:])


class FlatDecoder(Decoder):
    """Latents (B, S, latent) and (B, M, latent) -> logits (B, K, t, h, w): every position attends to all latents."""

    def __init__(self, config: TokenizerConfig, motion: bool = True):
        super().__init__()
        block, dim, layers = config.block, config.block.dim, config.decoder_spatial
        self.grid = config.grid[1:]
        self.spatial_in = latent_input(config.latent_dim, dim)
        self.spatial_positions = nn.Parameter(torch.zeros(config.num_spatial_queries, dim))
        if motion:
            self.temporal_in = latent_input(config.latent_dim, dim)
            self.temporal_positions = nn.Parameter(torch.zeros(config.num_temporal_queries, dim))
        self.latent = SpatialTransformer("t" * len(layers), **block.spatial, norm_out=False)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.positions = nn.Parameter(torch.zeros(config.num_temporal_queries, dim))
        self.spatial = SpatialTransformer(layers, **block.spatial, peg=True, cross=True, num_null_kv=config.num_null_kv)
        self.head = code_head(config)

    def forward(self, spatial: Tensor, temporal: Tensor | None, num_slices: int) -> Tensor:
        latents = self.spatial_in(spatial) + self.spatial_positions
        if temporal is not None:
            latents = torch.cat((latents, self.temporal_in(temporal) + self.temporal_positions), dim=1)
        contexts = [x.squeeze(1) for x in self.latent(latents[:, None], (1, latents.shape[1]))]
        times = sinusoids(num_slices, latents.shape[-1], latents.device)[:, None]
        x = (self.mask_token + self.positions + times).expand(len(latents), -1, -1, -1)
        return self.logits(self.spatial(x, self.grid, contexts)[-1])


class LinearEncoder(Encoder):
    """Features of the patch grid, down-sampled by linear layers: the first slice in space, the later ones in time.

    Spatial token n is a rectangle of positions of the first slice, temporal token n is position n of all later slices.
    The paper does not say along which axes its down-sampling goes.
    """

    def __init__(self, config: TokenizerConfig, motion: bool = True):
        super().__init__()
        block, dim, latent, (t, h, w) = config.block, config.block.dim, config.latent_dim, config.grid
        self.grid, self.tokens = (h, w), config.spatial_query_grid
        self.patches = patch_embedding(config, motion)
        self.spatial = SpatialTransformer(config.encoder_spatial, **block.spatial, peg=True, norm_out=False)
        self.down_space = nn.Linear(dim * h * w // config.num_spatial_queries, dim)
        self.spatial_out = latent_head(dim, latent)
        if motion:
            self.temporal = TemporalTransformer(config.encoder_temporal, **block.temporal, norm_out=False)
            self.down_time = nn.Linear(dim * (t - 1), dim)
            self.temporal_out = latent_head(dim, latent)

    def latents(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.spatial(self.patches(video).flatten(2, 3), self.grid)[-1]
        (h, w), (rows, columns) = self.grid, self.tokens
        blocks = x[:, 0].unflatten(1, (rows, h // rows, columns, w // columns)).transpose(2, 3)
        spatial = self.spatial_out(self.down_space(blocks.flatten(3).flatten(1, 2)))
        if video.shape[2] == 1:
            return spatial, None
        later = self.temporal(x.transpose(1, 2), self.grid)[-1][:, :, 1:]
        return spatial, self.temporal_out(self.down_time(later.flatten(2)))


class LinearDecoder(Decoder):
    """Latents (B, S, latent) and (B, M, latent) -> logits (B, K, t, h, w), through linear up-sampling."""

    def __init__(self, config: TokenizerConfig, motion: bool = True):
        super().__init__()
        block, dim, (t, h, w) = config.block, config.block.dim, config.grid
        self.grid, self.tokens, self.later = (h, w), config.spatial_query_grid, t - 1
        self.spatial_in = latent_input(config.latent_dim, dim)
        self.up_space = nn.Linear(dim, dim * h * w // config.num_spatial_queries)
        self.positions = nn.Parameter(torch.zeros(config.num_temporal_queries, dim))
        if motion:
            self.temporal_in = latent_input(config.latent_dim, dim)
            self.up_time = nn.Linear(dim, dim * self.later)
            self.temporal = TemporalTransformer(config.decoder_temporal, **block.layer, norm_out=False)
        self.spatial = SpatialTransformer(config.decoder_spatial, **block.spatial, peg=True)
        self.head = code_head(config)

    def forward(self, spatial: Tensor, temporal: Tensor | None, num_slices: int) -> Tensor:
        (h, w), (rows, columns) = self.grid, self.tokens
        blocks = self.up_space(self.spatial_in(spatial)).unflatten(2, (h // rows, w // columns, -1))
        x = blocks.unflatten(1, self.tokens).transpose(2, 3).flatten(1, 4)[:, None] + self.positions
        if temporal is not None:
            later = self.up_time(self.temporal_in(temporal)).unflatten(2, (self.later, -1)).transpose(1, 2)
            x = torch.cat((x, later + self.positions), dim=1)
            x = self.temporal(x.transpose(1, 2), self.grid)[-1].transpose(1, 2)
        return self.logits(self.spatial(x, self.grid)[-1])


def patch_embedding(config: TokenizerConfig, motion: bool) -> PatchEmbed:
    """The patch embedding of clips, or without `motion` of images."""
    patches = PatchEmbed(config.block.dim, *config.proxy.patches)
    if not motion:
        patches.tubes = None
    return patches


def make_encoder(config: TokenizerConfig, motion: bool) -> Encoder:
    """The encoder of `config.compression`."""
    encoders = {"dqae": QueryEncoder, "flat_queries": FlatEncoder, "linear": LinearEncoder}
    return encoders[config.compression](config, motion)


def make_decoder(config: TokenizerConfig, motion: bool) -> Decoder:
    """The decoder of `config.compression` and `config.decoder_order`."""
    queries = FirstFrameDecoder if config.decoder_order == "first_frame" else QueryDecoder
    decoders = {"dqae": queries, "flat_queries": FlatDecoder, "linear": LinearDecoder}
    return decoders[config.compression](config, motion)
