"""Exponential moving average of a model's weights, complete with its buffers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sweettok.train.sharding import like, local


class EMA:
    """Moving average of the trainable parameters; everything else in the model's state dict is copied as it is.

    The average starts as a copy of the model, is kept in float32 at least, and lives on the model's device, in slices
    as a sharded model does. Pass the bare model, not one wrapped for distributed training, to every method.
    """

    def __init__(self, model: nn.Module, cap: float = 0.999):
        if not 0 <= cap < 1:
            raise ValueError(f"the cap of the moving average must be in [0, 1), got {cap}")
        self.cap = cap
        self.calls = 0
        self.shadow = {name: self._as_kept(value).clone() for name, value in model.state_dict().items()}

    @staticmethod
    def _as_kept(value: Tensor) -> Tensor:
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value

    def decay(self) -> float:
        """Decay of the latest update: 0 at the first, then (1 + s) / (10 + s) with s = calls - 1, up to the cap."""
        s = self.calls - 1
        return min(self.cap, (1 + s) / (10 + s)) if s > 0 else 0.0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present weights; call once after each optimizer step."""
        self.calls += 1
        trainable = {name for name, param in model.named_parameters(remove_duplicate=False) if param.requires_grad}
        averaged, copied = [], []
        for name, value in model.state_dict().items():
            pair = local(self.shadow[name]), local(self._as_kept(value))
            (averaged if name in trainable else copied).append(pair)
        if averaged:
            shadows, values = map(list, zip(*averaged, strict=True))
            torch._foreach_lerp_(shadows, values, 1 - self.decay())
        if copied:
            shadows, values = map(list, zip(*copied, strict=True))
            torch._foreach_copy_(shadows, values)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, `model` holds the averaged weights; afterwards, also on an error, its own again, bit for bit."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        self.copy_to(model)
        try:
            yield
        finally:
            self._write(own, model)

    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the model's weights and buffers with the averaged ones."""
        self._write(self.shadow, model)

    @staticmethod
    @torch.no_grad()
    def _write(values: Mapping[str, Tensor], model: nn.Module) -> None:
        for name, target in model.state_dict().items():
            target.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on: {"cap", "calls", "shadow": {the model's state names: tensors}}."""
        return {"cap": self.cap, "calls": self.calls, "shadow": dict(self.shadow)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, of whole tensors, with its cap and count. ValueError if it belongs to another model."""
        shadow = state["shadow"]
        wrong = sorted(
            name
            for name in shadow.keys() | self.shadow.keys()
            if name not in shadow or name not in self.shadow or shadow[name].shape != self.shadow[name].shape
        )
        if wrong:
            raise ValueError(f"this moving average is of another model: {len(wrong)} entries differ, as {wrong[0]!r}")
        self.cap, self.calls = state["cap"], state["calls"]
        for name, value in self.shadow.items():
            value.copy_(like(value, shadow[name]))
