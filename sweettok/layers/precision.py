"""Parts of a forward pass that are computed in float32 whatever the autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Turns autocast off; in torch.export, which traces without autocast, it does nothing.

    Exported programs that hold such contexts cannot be saved.
    """
    return nullcontext() if torch.compiler.is_exporting() else torch.autocast(device.type, enabled=False)
