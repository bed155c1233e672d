"""Clip to patch grid and back: the first frame in square patches, later frames in tubes.

Letters: B batch, T frames, H W pixels, t h w latent grid, D width.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from sweettok.layers.norm import EPS


class PatchEmbed(nn.Module):
    """(B, 3, T, H, W) -> (B, t, h, w, D); a clip of one frame is an image."""

    def __init__(self, dim: int, patch_size: int, temporal_patch_size: int):
        super().__init__()
        self.p, self.pt = patch_size, temporal_patch_size
        self.first_frame = self._embedding(3 * self.p**2, dim)
        self.tubes = self._embedding(3 * self.pt * self.p**2, dim)

    def forward(self, video: Tensor) -> Tensor:
        first = rearrange(video[:, :, :1], "b c t (h p1) (w p2) -> b t h w (c p1 p2)", p1=self.p, p2=self.p)
        slices = self.first_frame(first)
        if video.shape[2] == 1:
            return slices
        later = rearrange(
            video[:, :, 1:], "b c (t pt) (h p1) (w p2) -> b t h w (c pt p1 p2)", pt=self.pt, p1=self.p, p2=self.p
        )
        return torch.cat((slices, self.tubes(later)), dim=1)

    @staticmethod
    def _embedding(values: int, dim: int) -> nn.Sequential:
        return nn.Sequential(nn.LayerNorm(values, eps=EPS), nn.Linear(values, dim), nn.LayerNorm(dim, eps=EPS))


class Unpatch(nn.Module):
    """(B, t, h, w, D) -> (B, 3, T, H, W)."""

    def __init__(self, dim: int, patch_size: int, temporal_patch_size: int):
        super().__init__()
        self.p, self.pt = patch_size, temporal_patch_size
        self.first_frame = nn.Linear(dim, 3 * self.p**2)
        self.tubes = nn.Linear(dim, 3 * self.pt * self.p**2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first_frame(x[:, :1])
        video = rearrange(first, "b t h w (c p1 p2) -> b c t (h p1) (w p2)", p1=self.p, p2=self.p)
        if x.shape[1] == 1:
            return video
        later = rearrange(
            self.tubes(x[:, 1:]), "b t h w (c pt p1 p2) -> b c (t pt) (h p1) (w p2)", pt=self.pt, p1=self.p, p2=self.p
        )
        return torch.cat((video, later), dim=2)

    def start_grey(self) -> None:
        """Make the first pixels of a training nearly grey, which is much nearer to any clip than noise is."""
        for layer in (self.first_frame, self.tubes):
            nn.init.trunc_normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
