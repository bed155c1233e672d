"""Clip to patch grid and back: the first frame in square patches, later frames in tubes (patches of several frames).

Letters: B batch, T frames, H W pixels, t h w latent grid, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sweettok.layers.norm import EPS


class PatchEmbed(nn.Module):
    """(B, 3, T, H, W) -> (B, t, h, w, D); a clip of one frame is an image.

    A linear layer for each kind of patch. With `norm`, layer norms stand before and after it (release); the first one
    removes brightness and contrast of each patch.
    """

    def __init__(self, dim: int, patch_size: int, temporal_patch_size: int, norm: bool = True):
        super().__init__()
        self.p, self.pt, self.norm = patch_size, temporal_patch_size, norm
        self.first_frame = self._embedding(3 * self.p**2, dim)
        self.tubes = self._embedding(3 * self.pt * self.p**2, dim)

    def forward(self, video: Tensor) -> Tensor:
        slices = self.first_frame(self._patches(video[:, :, :1], 1))
        if video.shape[2] == 1:
            return slices
        return torch.cat((slices, self.tubes(self._patches(video[:, :, 1:], self.pt))), dim=1)

    def still(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> the tube (B, 1, h, w, D) whose frames all equal the first frame."""
        return self.tubes(self._patches(video[:, :, :1].expand(-1, -1, self.pt, -1, -1), self.pt))

    def _patches(self, video: Tensor, pt: int) -> Tensor:
        """(B, 3, t * pt, h * p, w * p) -> (B, t, h, w, 3 * pt * p * p)."""
        parts = video.unflatten(4, (-1, self.p)).unflatten(3, (-1, self.p)).unflatten(2, (-1, pt))
        return parts.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)

    def _embedding(self, values: int, dim: int) -> nn.Sequential:
        if not self.norm:
            return nn.Sequential(nn.Linear(values, dim))
        return nn.Sequential(nn.LayerNorm(values, eps=EPS), nn.Linear(values, dim), nn.LayerNorm(dim, eps=EPS))


class Unpatch(nn.Module):
    """(B, t, h, w, D) -> (B, 3, T, H, W)."""

    def __init__(self, dim: int, patch_size: int, temporal_patch_size: int):
        super().__init__()
        self.p, self.pt = patch_size, temporal_patch_size
        self.first_frame = nn.Linear(dim, 3 * self.p**2)
        self.tubes = nn.Linear(dim, 3 * self.pt * self.p**2)

    def forward(self, x: Tensor) -> Tensor:
        video = self._pixels(self.first_frame(x[:, :1]), 1)
        if x.shape[1] == 1:
            return video
        return torch.cat((video, self._pixels(self.tubes(x[:, 1:]), self.pt)), dim=2)

    def _pixels(self, patches: Tensor, pt: int) -> Tensor:
        """(B, t, h, w, 3 * pt * p * p) -> (B, 3, t * pt, h * p, w * p)."""
        parts = patches.unflatten(4, (3, pt, self.p, self.p)).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return parts.flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def start_grey(self) -> None:
        """Initial weights whose output is nearly grey, which is closer to any clip than noise is."""
        for layer in (self.first_frame, self.tubes):
            nn.init.trunc_normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
