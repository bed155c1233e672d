"""Gradient checkpointing: layers are recomputed in the backward pass instead of keeping their activations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Checkpointed(nn.Module):
    """A stack of layers whose steps run through `recomputed`."""

    gradient_checkpointing = False

    def recomputed(self, function: Callable[..., Tensor], *inputs) -> Tensor:
        """`function(*inputs)`, recomputed in the backward pass where gradient checkpointing is on."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)


def set_gradient_checkpointing(model: nn.Module, enabled: bool) -> None:
    """Turn it on or off in all of `model`; gradients are the same either way."""
    for module in model.modules():
        if isinstance(module, Checkpointed):
            module.gradient_checkpointing = enabled
