"""Proxy tokenizer (OmniTokenizer VQ): clip or image <-> grid of codes.

It is the teacher of stage 1 and the pixel decoder of stage 2.

Letters: B batch, T frames, H W pixels, t h w latent grid, K codes, c width of a code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweettok import convert, pixels
from sweettok.hub import Pretrained
from sweettok.layers.initialisation import init_linears
from sweettok.layers.patching import PatchEmbed, Unpatch
from sweettok.layers.transformer import SpatialTransformer, TemporalTransformer
from sweettok.proxy.card import CARD
from sweettok.proxy.codes import CodeTable
from sweettok.proxy.config import ProxyConfig
from sweettok.proxy.release import PROXY


class ProxyOutput(NamedTuple):
    """Result of a training forward."""

    video: Tensor  # (B, 3, T, H, W)
    features: Tensor  # (B, t, h, w, c), before quantization, detached
    codes: Tensor  # (B, t, h, w)
    commitment: Tensor  # mean squared distance of features to their codes


class ProxyTokenizer(Pretrained):
    """A clip (B, 3, T, H, W) or an image (T = 1) <-> codes (B, t, h, w) in [0, K)."""

    config_class = ProxyConfig
    card_info = CARD

    def __init__(self, config: ProxyConfig | None = None):
        super().__init__()
        self.config = config = config or ProxyConfig()
        block = config.block
        self.patches = PatchEmbed(block.dim, *config.patches, norm=config.patch_norm)
        self.spatial = SpatialTransformer(config.encoder_spatial, **block.spatial, peg=True)
        self.temporal = TemporalTransformer(config.encoder_temporal, **block.temporal)
        self.to_code = nn.Linear(block.dim, config.code_dim)
        self.decoder = PixelDecoder(config)
        init_linears(self, block.dim)
        self.decoder.unpatch.start_grey()

    def forward(self, video: Tensor) -> ProxyOutput:
        """Training forward of clips (B, 3, T, H, W), with straight-through gradients from codes to features."""
        video = pixels.check_video(video, check_range=False)
        self.config.check_clip(*video.shape[2:])
        features = self.features(video)
        codes = self.codebook.nearest(features)
        vectors = self.codebook(codes)
        commitment = F.mse_loss(features, vectors)
        straight_through = vectors + (features - features.detach())
        return ProxyOutput(self.decoder(straight_through), features.detach(), codes, commitment)

    def features(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-0.5, 0.5] -> unit vectors (B, t, h, w, c), float32."""
        x = self.patches(video)
        grid = x.shape[2:4]
        x = self.spatial.norm_out(self.spatial(x.flatten(2, 3), grid)[-1])
        x = x.transpose(1, 2).contiguous()
        x = self.temporal.norm_out(self.temporal(x, grid)[-1])
        return F.normalize(self.to_code(x.transpose(1, 2).unflatten(2, grid)).float(), dim=-1)

    @property
    def codebook(self) -> CodeTable:
        return self.decoder.codebook

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W), or images (B, 3, H, W); uint8, or float in [-0.5, 0.5] -> int64 codes (B, t, h, w).

        Raises ValueError for shapes, types and values that do not fit.
        """
        video = pixels.check_video(pixels.as_clips(video))
        self.config.check_clip(*video.shape[2:])
        return self.codebook.nearest(self.features(video))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Integer codes (B, t, h, w) -> float32 pixels (B, 3, T, H, W), not clamped. Raises ValueError."""
        if not isinstance(codes, Tensor):
            raise ValueError(f"codes must be a torch tensor, got {type(codes).__name__}")
        integer = not (codes.dtype.is_floating_point or codes.dtype.is_complex or codes.dtype == torch.bool)
        if not integer or codes.ndim != 4 or codes.numel() == 0:
            raise ValueError(f"codes must be integers of shape (B, t, h, w), got {codes.dtype} {tuple(codes.shape)}")
        low, high = codes.min().item(), codes.max().item()
        if low < 0 or high >= self.config.num_codes:
            raise ValueError(f"codes must lie in 0..{self.config.num_codes - 1}, got {low}..{high}")
        patch, step = self.config.patches
        t, h, w = codes.shape[1:]
        self.config.check_clip(1 + (t - 1) * step, h * patch, w * patch)
        return self.decoder(self.codebook(codes.long()))

    @classmethod
    def from_release(cls, weights: str | Path | Mapping[str, Any], config: ProxyConfig | None = None) -> ProxyTokenizer:
        """The published proxy, from its file or a mapping of its names to arrays; all entries must fit."""
        model = cls(config)
        if not model.config.patch_norm:
            raise ValueError("published weights are of a proxy with patch_norm: leave proxy.patch_norm true")
        state = model.state_dict()
        model.load_state_dict({**state, **convert.import_weights(state, convert.read_weights(weights), PROXY)})
        return model.eval()

    def to_release(self) -> dict[str, Tensor]:
        """Published names -> tensors, the inverse of `from_release`."""
        return convert.export_weights(self.state_dict(), PROXY)


class PixelDecoder(nn.Module):
    """Code vectors (B, t, h, w, c) -> pixels (B, 3, T, H, W), not clamped to [-0.5, 0.5]. Holds the code table."""

    def __init__(self, config: ProxyConfig):
        super().__init__()
        block = config.block
        self.codebook = CodeTable(config.num_codes, config.code_dim)
        self.from_code = nn.Linear(config.code_dim, block.dim)
        self.temporal = TemporalTransformer(config.decoder_temporal, **block.temporal)
        self.spatial = SpatialTransformer(config.decoder_spatial, **block.spatial, peg=True)
        self.unpatch = Unpatch(block.dim, *config.patches)

    def forward(self, vectors: Tensor) -> Tensor:
        grid = vectors.shape[2:4]
        x = self.from_code(vectors).flatten(2, 3).transpose(1, 2).contiguous()
        x = self.temporal.norm_out(self.temporal(x, grid)[-1]).transpose(1, 2)
        x = self.spatial.norm_out(self.spatial(x, grid)[-1])
        return self.unpatch(x.unflatten(2, grid)).float()
