"""Proxy tokenizer (OmniTokenizer VQ): clip or image <-> grid of codes. Teacher of stage 1, pixel decoder of stage 2.

Letters: B batch, T frames, H W pixels, t h w latent grid, D width, K codes, c width of a code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweettok import convert, pixels
from sweettok.distributed import add_up, gather_rows
from sweettok.hub import Pretrained
from sweettok.layers.attention import SpatialTransformer, TemporalTransformer, init_linears
from sweettok.layers.patching import PatchEmbed, Unpatch
from sweettok.proxy.card import CARD
from sweettok.proxy.config import ProxyConfig


class CodeTable(nn.Module):
    """K code vectors, learned as moving averages of the features that choose them."""

    embeddings: Tensor  # (K, c)
    counts: Tensor  # (K,)
    sums: Tensor  # (K, c)

    def __init__(self, num_codes: int, code_dim: int):
        super().__init__()
        # Features are unit vectors, so the codes start as such, each as if chosen once.
        embeddings = F.normalize(torch.randn(num_codes, code_dim), dim=-1)
        self.register_buffer("embeddings", embeddings)
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("sums", embeddings.clone())

    def nearest(self, features: Tensor) -> Tensor:
        """(..., c) -> (...) int64 by squared distance, in float32 whatever the autocast."""
        with torch.autocast(features.device.type, enabled=False), torch.no_grad():
            flat = features.float().flatten(0, -2)
            scores = flat @ self.embeddings.T - 0.5 * self.embeddings.square().sum(1)
            return scores.argmax(1).view(features.shape[:-1])

    def forward(self, codes: Tensor) -> Tensor:
        """(...) -> (..., c)."""
        return F.embedding(codes, self.embeddings)

    @torch.no_grad()
    def update(
        self, features: list[Tensor], codes: Tensor, decay: float, dead_threshold: float, generator: torch.Generator
    ) -> Tensor:
        """One moving-average step from groups of features (N, c) and the codes of all of them, over all processes.

        A code whose moving count falls below the share `dead_threshold` of the mean moves onto a randomly drawn
        feature of this step, with a mean count (`generator` must draw alike on every process). Returns how many moved.
        """
        features, K = [rows.float() for rows in features], len(self.embeddings)
        # bincount would wait for the device.
        counts = torch.zeros(K, device=codes.device).index_add_(0, codes, torch.ones_like(codes, dtype=torch.float32))
        sums = torch.zeros_like(self.sums).index_add_(0, codes, torch.cat(features))
        add_up(counts)
        add_up(sums)
        self.counts.lerp_(counts, 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        # Laplace smoothing keeps rarely used codes finite.
        total = self.counts.sum()
        smoothed = (self.counts + 1e-5) / (total + K * 1e-5) * total
        self.embeddings.copy_(self.sums / smoothed[:, None])
        dead = self.counts < dead_threshold * total / K
        if dead_threshold > 0:
            fresh = draw_rows(torch.cat([gather_rows(rows) for rows in features]), K, generator)
            self.embeddings.copy_(torch.where(dead[:, None], fresh, self.embeddings))
            self.counts.copy_(torch.where(dead, total / K, self.counts))
            self.sums.copy_(torch.where(dead[:, None], fresh * total / K, self.sums))
        return dead.sum()

    def perplexity(self) -> Tensor:
        """Exponential of the entropy of the moving counts: how many codes are in use, as a scalar tensor."""
        share = self.counts / self.counts.sum().clamp_min(1e-8)
        return torch.special.entr(share).sum().exp()


def draw_rows(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` rows, without repeats where there are enough, with a little noise where there are not."""
    repeats = -(-count // len(rows))
    order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(repeats)])[:count]
    drawn = rows[order.to(rows.device)]
    if repeats == 1:
        return drawn
    return drawn + 1e-3 * torch.randn(drawn.shape, generator=generator).to(drawn)


class PixelDecoder(nn.Module):
    """Code vectors (B, t, h, w, c) -> pixels (B, 3, T, H, W), unbounded, nominally [-0.5, 0.5]; holds the codes."""

    def __init__(self, config: ProxyConfig):
        super().__init__()
        dim = config.block.dim
        self.codebook = CodeTable(config.num_codes, config.code_dim)
        self.from_code = nn.Linear(config.code_dim, dim)
        self.temporal = TemporalTransformer(config.block, config.decoder_temporal)
        self.spatial = SpatialTransformer(config.block, config.decoder_spatial, peg=True)
        self.unpatch = Unpatch(config, dim)

    def forward(self, vectors: Tensor) -> Tensor:
        grid = vectors.shape[2:4]
        x = self.from_code(vectors).flatten(2, 3).transpose(1, 2).contiguous()
        x = self.temporal.norm_out(self.temporal(x, grid)[-1]).transpose(1, 2)
        x = self.spatial.norm_out(self.spatial(x, grid)[-1])
        return self.unpatch(x.unflatten(2, grid)).float()


class ProxyOutput(NamedTuple):
    """One training pass: pixels, features before quantization (B, t, h, w, c), codes (B, t, h, w), commitment loss."""

    video: Tensor
    features: Tensor
    codes: Tensor
    commitment: Tensor


class ProxyTokenizer(Pretrained):
    """A clip (B, 3, T, H, W) or an image (T = 1) <-> codes (B, t, h, w) in [0, K)."""

    config_class = ProxyConfig
    card_info = CARD

    def __init__(self, config: ProxyConfig | None = None):
        super().__init__()
        self.config = config = config or ProxyConfig()
        dim = config.block.dim
        self.patches = PatchEmbed(config, dim)
        self.spatial = SpatialTransformer(config.block, config.encoder_spatial, peg=True)
        self.temporal = TemporalTransformer(config.block, config.encoder_temporal)
        self.to_code = nn.Linear(dim, config.code_dim)
        self.decoder = PixelDecoder(config)
        init_linears(self, dim)
        self.decoder.unpatch.start_grey()

    @property
    def codebook(self) -> CodeTable:
        return self.decoder.codebook

    @classmethod
    def from_release(cls, weights: str | Path | Mapping[str, Any], config: ProxyConfig | None = None) -> ProxyTokenizer:
        """Load the published proxy from a file or a mapping of its names to arrays; strict (see `sweettok.convert`)."""
        model = cls(config)
        model.load_state_dict(
            {
                **model.state_dict(),
                **convert.import_weights(model.state_dict(), convert.read_weights(weights), convert.PROXY),
            }
        )
        return model.eval()

    def to_release(self) -> dict[str, Tensor]:
        """Published names -> tensors, complete for a strict load elsewhere; the inverse of `from_release`."""
        from sweettok.tokenizer.release import released_state

        return released_state(self, convert.PROXY)

    def features(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-0.5, 0.5] -> unit vectors (B, t, h, w, c), float32."""
        x = self.patches(video)
        grid = x.shape[2:4]
        x = self.spatial.norm_out(self.spatial(x.flatten(2, 3), grid)[-1])
        x = x.transpose(1, 2).contiguous()
        x = self.temporal.norm_out(self.temporal(x, grid)[-1])
        return F.normalize(self.to_code(x.transpose(1, 2).unflatten(2, grid)).float(), dim=-1)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W), or images (B, 3, H, W); uint8, or float in [-0.5, 0.5] -> int64 codes (B, t, h, w).

        Raises ValueError for shapes, types and values that do not fit.
        """
        if isinstance(video, Tensor) and video.ndim == 4:
            video = video.unsqueeze(2)
        video = pixels.check_video(video)
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
        patch, step = self.config.patch_size, self.config.temporal_patch_size
        t, h, w = codes.shape[1:]
        self.config.check_clip(1 + (t - 1) * step, h * patch, w * patch)
        return self.decoder(self.codebook(codes.long()))

    def forward(self, video: Tensor) -> ProxyOutput:
        """Training pass on clips (B, 3, T, H, W): straight-through from the codes to the features."""
        video = pixels.check_video(video, check_range=False)
        self.config.check_clip(*video.shape[2:])
        features = self.features(video)
        codes = self.codebook.nearest(features)
        vectors = self.codebook(codes)
        commitment = F.mse_loss(features, vectors)
        straight_through = vectors + (features - features.detach())
        return ProxyOutput(self.decoder(straight_through), features.detach(), codes, commitment)
