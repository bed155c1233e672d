"""From the difference of a frame's features to the key frame's to one motion token (g of the paper).

Letters: B clips, M motion tokens, P patches, C channels, H hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sweettok.vtok.config import PROJECTIONS


class Projection(nn.Module):
    """Differences (B, M, P, C) -> tokens (B, M, C); at the start the mean over patches, whatever the kind.

    Args:
        kind: "identity", "mlp" or "patch_mlp", see `VTokConfig.projection`.
        patches: P, the rows of the table of positions of "patch_mlp"; 1 for the others.
    """

    def __init__(self, kind: str, dim: int, hidden: int, patches: int):
        super().__init__()
        assert kind in PROJECTIONS and (patches == 1 or kind == "patch_mlp")
        self.enter = self.leave = self.positions = None
        if kind == "identity":
            return
        self.enter, self.leave = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        if kind == "patch_mlp":  # what a linear layer of [difference, one-hot position] adds for the position
            self.positions = nn.Parameter(torch.randn(patches, hidden) / 2)

    def forward(self, residuals: Tensor) -> Tensor:
        pooled = residuals.mean(2)
        if self.enter is None:
            return pooled
        hidden = self.enter(residuals)
        if self.positions is not None:
            hidden = hidden + self.positions
        return pooled + self.leave(nn.functional.gelu(hidden).mean(2))
