"""Interface between a training stage and the loop: trained modules, losses, validation, samples and export."""

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset

from sweettok.train.config import RunConfig


@dataclass
class TrainedModule:
    """A module with its own optimizer and schedule, such as the generator or the discriminator.

    module: trained through its forward, which the loop wraps: it runs in the configured precision, returns float32, and
        gradients are averaged over the processes. Each of its losses must depend on all its trainable parameters.
    optimizer: with fused=True, so that it can read on the device whether to skip a step.
    scheduler: stepped by the loop in every step from `start_step` on, skipped ones included.
    max_grad_norm: gradients of a larger global norm are scaled down to it.
    start_step: zero-based step of its first update.
    """

    name: str
    module: nn.Module
    optimizer: Optimizer
    scheduler: LambdaLR
    max_grad_norm: float
    start_step: int = 0

    @property
    def bare(self) -> nn.Module:
        """The module without DistributedDataParallel."""
        return self.module.module if isinstance(self.module, DistributedDataParallel) else self.module

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that the optimizer updates."""
        return [param for group in self.optimizer.param_groups for param in group["params"]]


@dataclass(frozen=True)
class StepContext:
    """Position of a micro-batch in the run; random numbers drawn through it do not depend on the number of processes.

    step: zero-based.
    batch_start, batch_size: range of the micro-batch in the `global_batch` clips of the step.
    """

    step: int
    seed: int
    batch_start: int
    batch_size: int
    global_batch: int

    def generator(self, purpose: str) -> torch.Generator:
        """CPU generator seeded by (seed, step, purpose), equal on all processes."""
        return torch.Generator().manual_seed(self._number(purpose))

    def generators(self, purpose: str, each: int = 1) -> list[torch.Generator]:
        """CPU generators of this micro-batch, `each` for each clip, seeded by (seed, step, purpose, their index)."""
        clips = range(self.batch_start * each, (self.batch_start + self.batch_size) * each)
        return [torch.Generator().manual_seed(self._number(f"{purpose}/{clip}")) for clip in clips]

    def own(self, draws: Tensor) -> Tensor:
        """(global_batch, ...) drawn for all clips of the step -> (batch_size, ...) of this micro-batch."""
        if len(draws) != self.global_batch:
            raise ValueError(f"expected draws for all {self.global_batch} clips of the step, got {len(draws)}")
        return draws[self.batch_start : self.batch_start + self.batch_size]

    def seed_default_generators(self) -> None:
        """Seed the default generators, as dropout uses them, by (seed, step).

        Draws are then equal on all processes and micro-batches, as noise on weights must be. Use `generator` for noise
        on clips.
        """
        torch.manual_seed(self._number("default"))
        random.seed(self._number("default"))

    def _number(self, purpose: str) -> int:
        text = f"{self.seed}/{self.step}/{purpose}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class Task(ABC):
    """A training stage.

    The constructor builds all modules on the CPU, in the mode (train or eval) in which they are used in training. The
    loop moves and wraps them. A task can be sharded if it has one trained module, whose losses are computed through the
    forward of its `module`.

    name: the stage.
    run_class: the stage's run configuration, a frozen dataclass with `stage`, `data` and `train` (see `RunConfig`).
    model: the model that is averaged, saved in checkpoints and exported, without wrappers.
    trained: by name, in the order of their updates, which follow after all losses of a step.
    train_dataset, validation_dataset: of dicts, collated into batches; None for no validation.
    """

    name: ClassVar[str]
    run_class: ClassVar[type]
    model: nn.Module
    trained: dict[str, TrainedModule]
    train_dataset: Dataset
    validation_dataset: Dataset | None = None

    @property
    def modules(self) -> list[nn.Module]:
        """All modules that are attributes of this task, and the trained modules."""
        own = [value for value in vars(self).values() if isinstance(value, nn.Module)]
        return [*own, *(trained.module for trained in self.trained.values())]

    def to(self, device: torch.device) -> None:
        """Move all modules, except sharded ones, which are on their device already."""
        for module in self.modules:
            if not isinstance(module, FSDPModule):
                module.to(device)

    @abstractmethod
    def losses(self, batch: Any, context: StepContext) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Yield, for each trained module that has started, its name, its loss (a mean over clips) and scalars to log.

        The loop calls backward on each loss before it requests the next, and logs it as `loss/<name>`. To compute a
        module's own loss, call its `module`; for the loss of another module, call its `bare` with detached parameters.
        Draw random numbers for clips through `context`.
        """

    @classmethod
    def complete(cls, settings: DictConfig, earlier: Sequence[RunConfig] = ()) -> DictConfig:
        """The settings of a run, completed by those of its inputs, which may be outputs of the `earlier` runs."""
        return settings

    @classmethod
    def saved_model(cls, run: Any, inputs: Any) -> nn.Module:
        """The model that a run of this stage will save, built from the sizes of its inputs."""
        raise ValueError(f"the {cls.name} stage saves no model that another stage starts from")

    def example_batch(self, size: int) -> dict[str, Tensor]:
        """A batch of zeros with the shapes and types of `size` items of the training data."""
        raise ValueError(f"the {self.name} stage cannot be planned: its task defines no example_batch")

    @property
    def tokens_per_clip(self) -> int:
        """Tokens of a clip, for the plan's totals."""
        return 0

    def after_step(self, context: StepContext) -> dict[str, Tensor | float]:
        """Called on every process after the updates of a step; returns additional scalars to log."""
        return {}

    @abstractmethod
    def validate(self, batch: Any) -> dict[str, Tensor]:
        """Metrics of each clip, (B,) each, from `model` only, which is in eval mode and float32, without gradients.

        Must not communicate between processes.
        """

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Additional scalars computed from means over clips, such as a perplexity from a cross-entropy."""
        return {}

    def sample(self, batch: Any) -> Tensor | None:
        """uint8 (N, 3, T, H, W) sample videos of a batch, or None. Called like `validate`, on one process."""
        return None

    def extra_state(self) -> dict[str, Any]:
        """Tensors, numbers and strings, equal on all processes, to save besides weights and optimizers."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned."""
        if state:
            raise ValueError(f"the {self.name} task has no use for the extra state {sorted(state)}")

    @abstractmethod
    def export(self, folder: Path, training: Mapping[str, Any]) -> None:
        """Write the model in the public format; it has the averaged weights during this call.

        training: facts of the run for the model card.
        """
