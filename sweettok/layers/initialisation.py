"""Initial weights."""

from __future__ import annotations

from torch import nn


def init_linears(model: nn.Module, dim: int) -> None:
    """Truncated normal weights and zero biases for every linear layer.

    The standard deviation is 0.02 at a width of 512 (release) and larger in narrower models, which keeps the scale of
    activations.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02 * (512 / dim) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
