"""Mean and variance of visual tokens, by which losses and decoders standardise them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sweettok.distributed import add_up

SMALLEST = 1e-5  # standard deviation, of channels that do not vary


class TokenStatistics(nn.Module):
    """Mean and variance of each channel over all tokens seen, apart for key-frame and motion tokens.

    With `fixed`, `update` does nothing.
    """

    fixed = False

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("count", torch.zeros(2, 1))
        self.register_buffer("mean", torch.zeros(2, dim))
        self.register_buffer("variance", torch.ones(2, dim))

    @torch.no_grad()
    def update(self, values: Tensor, kinds: Tensor, mask: Tensor, shared: bool = False) -> None:
        """Add the tokens (B, L, C) with kinds (B, L) where `mask` (B, L) is set, of all processes; `shared`: which all
        give the same ones, so that they count once."""
        if self.fixed:
            return
        ours = torch.stack([mask & (kinds == kind) for kind in (0, 1)]).flatten(1).float()
        values = values.float().flatten(0, 1)
        shifted = [values - mean for mean in self.mean]  # near zero, so that squares lose nothing
        sums = [torch.stack((w @ x, w @ x.square())) for w, x in zip(ours, shifted, strict=True)]
        sums = torch.cat((torch.stack(sums), ours.sum(1)[:, None, None].expand(2, 1, values.shape[1])), 1)
        sums = sums if shared else add_up(sums)
        total, square, new = sums[:, 0], sums[:, 1], sums[:, 2, :1]
        count = self.count + new
        seen, step = count > 0, total / count.clamp_min(1)
        variance = (self.variance * self.count + square) / count.clamp_min(1) - step.square()
        self.variance.copy_(torch.where(seen, variance.clamp_min(0), self.variance))
        self.mean.add_(step)
        self.count.copy_(count)

    def standardise(self, values: Tensor, kinds: Tensor) -> Tensor:
        """(B, L, C) with kinds (B, L) -> mean 0 and variance 1 in each channel and kind."""
        return (values - self.mean[kinds]) / self._deviation[kinds]

    def restore(self, values: Tensor, kinds: Tensor) -> Tensor:
        """Inverse of `standardise`."""
        return values * self._deviation[kinds] + self.mean[kinds]

    @property
    def _deviation(self) -> Tensor:
        return self.variance.sqrt().clamp_min(SMALLEST)
