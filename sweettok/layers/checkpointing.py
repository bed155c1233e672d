"""Gradient checkpointing: the backward pass recomputes layers instead of keeping their activations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Checkpointed(nn.Module):
    """A module that runs its layers through `recomputed`."""

    gradient_checkpointing = False

    def recomputed(self, function: Callable[..., Tensor], *inputs) -> Tensor:
        """`function(*inputs)`, with gradient checkpointing if it is on."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)


def set_gradient_checkpointing(model: nn.Module, enabled: bool) -> None:
    """Turn gradient checkpointing on or off in all of `model`; gradients stay the same."""
    for module in model.modules():
        if isinstance(module, Checkpointed):
            module.gradient_checkpointing = enabled
