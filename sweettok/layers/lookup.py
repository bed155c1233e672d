"""Nearest-neighbour lookup."""

from __future__ import annotations

import torch
from torch import Tensor

from sweettok.layers.precision import without_autocast


@torch.no_grad()
def nearest(z: Tensor, table: Tensor, k: int = 1) -> Tensor:
    """z (..., C), table (V, C) -> (..., k) int64 nearest rows in float32, nearest first, ties in any order."""
    with without_autocast(z.device):
        # |z|^2 is the same for every row and is left out.
        scores = (z.float().flatten(0, -2) @ table.T).sub_(0.5 * table.square().sum(1))
    best = scores.argmax(1, keepdim=True) if k == 1 else scores.topk(k, dim=1).indices
    return best.view(*z.shape[:-1], k)
