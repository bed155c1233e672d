"""Muon: momentum whose matrices are orthogonalised (Jordan et al. 2024), for the hidden layers; AdamW for the rest.

torch.optim.Muon computes in bfloat16, which takes as long as the rest of a small model's step on CPUs without bfloat16
units, and has no AdamW for the other parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import AdamW

MOMENTUM = 0.95
STEPS = 5  # iterations
A, B, C = 3.4445, -4.7750, 2.0315  # their coefficients
RMS = 0.2  # root mean square of an update relative to the learning rate, as AdamW's usually is (Liu et al. 2025)


class Muon(AdamW):
    """AdamW, except for groups of matrices with `orthogonal`: their updates are the orthogonalised Nesterov momentum.

    As with fused AdamW, a scalar attribute `found_inf` that is not 0 leaves weights and moments unchanged.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        skipped = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for param in group["params"] if group["orthogonal"] else ():
                if param.grad is not None:
                    self._update(param, group, skipped)
                    param.grad = None  # AdamW passes over it
        super().step()

    def _update(self, param: nn.Parameter, group: dict, skipped: Tensor | None) -> None:
        state = self.state[param]
        if not state:
            state["momentum"] = torch.zeros_like(param)
            state["step"] = torch.zeros(())  # unused, but AdamW.load_state_dict reads it
        momentum = state["momentum"].lerp(param.grad, 1 - MOMENTUM)
        update = orthogonalised(param.grad.lerp(momentum, MOMENTUM)) * (RMS * max(param.shape) ** 0.5)
        weight = param * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * update
        if skipped is not None:
            momentum = torch.where(skipped > 0, state["momentum"], momentum)
            weight = torch.where(skipped > 0, param, weight)
        state["momentum"].copy_(momentum)
        param.copy_(weight)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Nearly the nearest (semi-)orthogonal matrix, in float32: singular values become about 0.7 to 1.2."""
    x = matrix.float()
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(STEPS):
        square = x @ x.T
        x = A * x + (B * square + C * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
