"""Linear layers without biases whose products have aligned rows."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

ALIGNED = 8  # elements: rows of other lengths make products up to a third slower, on CPUs and on GPUs
SMALLEST = 512  # shorter rows gain less than their padding costs


class SplitLinear(nn.Linear):
    """Linear layer with two outputs of equal width, (..., D) -> 2 x (..., width), contiguous each.

    Widths of at least `SMALLEST` are padded with zeros to a multiple of `ALIGNED`.
    """

    def __init__(self, dim: int, width: int):
        super().__init__(dim, 2 * width, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.weight.unflatten(0, (2, -1))
        width = weight.shape[1]
        if width >= SMALLEST and width % ALIGNED:
            weight = F.pad(weight, (0, 0, 0, -width % ALIGNED))
        first, second = weight.unbind(0)
        return F.linear(x, first), F.linear(x, second)


class PaddedLinear(nn.Linear):
    """Linear layer that ignores input channels after its own."""

    def __init__(self, dim: int, width: int):
        super().__init__(dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        spare = x.shape[-1] - self.in_features
        return F.linear(x, F.pad(self.weight, (0, spare)) if spare else self.weight)
