"""Exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sweettok.train.sharding import like, local


class EMA:
    """Moving average of the trainable parameters; other entries of the state dict are copied.

    It starts as a copy of the model, in float32 if that is in half precision, and sharded if that is sharded. Methods
    take the model without DistributedDataParallel. `cap` is the largest decay.
    """

    def __init__(self, model: nn.Module, cap: float = 0.999):
        if not 0 <= cap < 1:
            raise ValueError(f"the cap of the moving average must be in [0, 1), got {cap}")
        self.cap, self.calls = cap, 0
        self.shadow = {name: _widened(value).clone() for name, value in model.state_dict().items()}

    def decay(self) -> float:
        """Decay of the latest update: 0 at the first, then (1 + s) / (10 + s) with s = calls - 1, up to the cap."""
        s = self.calls - 1
        return min(self.cap, (1 + s) / (10 + s)) if s > 0 else 0.0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights; called once after each optimizer step."""
        self.calls += 1
        trainable = {name for name, param in model.named_parameters(remove_duplicate=False) if param.requires_grad}
        averaged, copied = [], []
        for name, value in model.state_dict().items():
            pair = local(self.shadow[name]), local(_widened(value))
            (averaged if name in trainable else copied).append(pair)
        if averaged:
            shadows, values = map(list, zip(*averaged, strict=True))
            torch._foreach_lerp_(shadows, values, 1 - self.decay())
        if copied:
            shadows, values = map(list, zip(*copied, strict=True))
            torch._foreach_copy_(shadows, values)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside the block, `model` has the averaged weights; its own are restored exactly."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        _write(self.shadow, model)
        try:
            yield
        finally:
            _write(own, model)

    def restore(self, calls: int, shadow: Mapping[str, Tensor]) -> None:
        """Load the count and the tensors, not sharded, of a saved average. ValueError if it is of another model."""
        shapes, others = ({name: value.shape for name, value in values.items()} for values in (self.shadow, shadow))
        if wrong := sorted(name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name)):
            raise ValueError(f"this moving average is of another model: {len(wrong)} entries differ, as {wrong[0]!r}")
        self.calls = calls
        for name, value in self.shadow.items():
            value.copy_(like(value, shadow[name]))


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


@torch.no_grad()
def _write(values: Mapping[str, Tensor], model: nn.Module) -> None:
    for name, target in model.state_dict().items():
        target.copy_(values[name])
