"""Muon: momentum whose matrices are orthogonalised (Jordan et al. 2024), for the hidden layers; AdamW for the rest.

torch.optim.Muon computes in bfloat16, which takes as long as the rest of a small model's step on CPUs without bfloat16
units, and has no AdamW for the other parameters.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.optim import AdamW

MOMENTUM = 0.95
STEPS = 5  # iterations
A, B, C = 3.4445, -4.7750, 2.0315  # their coefficients
STACK = 1 << 21  # elements of the matrices that are updated together
RMS = 0.2  # root mean square of an update relative to the learning rate, as AdamW's usually is (Liu et al. 2025)


class Muon(AdamW):
    """AdamW, except for groups of matrices with `orthogonal`: their updates are the orthogonalised Nesterov momentum.

    As with fused AdamW, a scalar attribute `found_inf` that is not 0 leaves weights and moments unchanged.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            stacks: dict[tuple, list[nn.Parameter]] = defaultdict(list)
            for param in group["params"] if group["orthogonal"] else ():
                if param.grad is not None:
                    stacks[(param.shape, param.dtype, param.device)].append(param)
            for params in stacks.values():
                size = max(1, STACK // params[0].numel())
                for start in range(0, len(params), size):
                    self._update(params[start : start + size], group, getattr(self, "found_inf", None))
        super().step()

    def _update(self, params: list[nn.Parameter], group: dict, skipped: Tensor | None) -> None:
        """Update matrices of one shape together, which takes a fraction of the operations."""
        for param in params:
            if not self.state[param]:
                # AdamW.load_state_dict reads "step", which is not used here.
                self.state[param] = {"momentum": torch.zeros_like(param), "step": torch.zeros(())}
        kept = [self.state[param]["momentum"] for param in params]
        gradient, before, old = (torch.stack(part) for part in ([param.grad for param in params], kept, params))
        momentum = before.lerp(gradient, 1 - MOMENTUM)
        update = orthogonalised(gradient.lerp(momentum, MOMENTUM))
        rate = group["lr"] * RMS * max(old.shape[1:]) ** 0.5
        weight = torch.add(old * (1 - group["lr"] * group["weight_decay"]), update, alpha=-rate)
        if skipped is not None:
            momentum = torch.where(skipped > 0, before, momentum)
            weight = torch.where(skipped > 0, old, weight)
        torch._foreach_copy_(kept, momentum.unbind())
        torch._foreach_copy_(params, weight.unbind())
        for param in params:
            param.grad = None  # AdamW passes over it


def orthogonalised(matrices: Tensor) -> Tensor:
    """(N, rows, columns) -> nearly the nearest (semi-)orthogonal ones, in float32: singular values of 0.7 to 1.2."""
    x = matrices.float()
    x = x.mT if x.shape[1] > x.shape[2] else x
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=B, alpha=C), x, beta=A)
    return x.mT if matrices.shape[1] > matrices.shape[2] else x
