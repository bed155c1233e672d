"""A training stage for the loop: the modules it trains, their losses, validation and samples."""

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

    module: trained through its forward, which the loop wraps: it runs in the configured precision, returns float32 and
        averages gradients over the processes. All its trainable parameters must take part in each of its losses.
    optimizer: a fused one, which can read on the device that a step is to be skipped.
    scheduler: stepped by the loop once in each step from `start_step` on, skipped ones included.
    max_grad_norm: bound of the global norm of its gradients.
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
        """The module without the wrapper of distributed training."""
        return self.module.module if isinstance(self.module, DistributedDataParallel) else self.module

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer updates."""
        return [param for group in self.optimizer.param_groups for param in group["params"]]


@dataclass(frozen=True)
class StepContext:
    """Place of a micro-batch in the run; random numbers drawn through it do not depend on the number of processes.

    step: zero-based.
    batch_start, batch_size: the clips at hand, as a run of the `global_batch` clips of this step.
    """

    step: int
    seed: int
    batch_start: int
    batch_size: int
    global_batch: int

    def generator(self, purpose: str) -> torch.Generator:
        """CPU generator that is a function of (seed, step, purpose) alone, so equal on all processes."""
        return torch.Generator().manual_seed(self._number(purpose))

    def own(self, draws: Tensor) -> Tensor:
        """(global_batch, ...) drawn for all clips of the step -> (batch_size, ...), those of the clips at hand."""
        if len(draws) != self.global_batch:
            raise ValueError(f"expected draws for all {self.global_batch} clips of the step, got {len(draws)}")
        return draws[self.batch_start : self.batch_start + self.batch_size]

    def seed_default_generators(self) -> None:
        """Make draws without a generator, as a dropout's, a function of (seed, step).

        They repeat on each process and micro-batch, as noise on weights must. Noise on clips comes from `generator`.
        """
        torch.manual_seed(self._number("default"))
        random.seed(self._number("default"))

    def _number(self, purpose: str) -> int:
        text = f"{self.seed}/{self.step}/{purpose}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class Task(ABC):
    """A training stage.

    The constructor builds everything on the CPU, each module in the mode, train or eval, that it trains in. The loop
    moves and wraps it, and restores the modes after validation. A task can be sharded if it has one trained module,
    whose losses are computed through the forward of its `module`.

    name: the stage.
    run_class: the stage's run configuration, a frozen dataclass with `stage`, `data` and `train` (see `RunConfig`).
    model: what is trained for, unwrapped. The moving average tracks it; checkpoints and the export hold it.
    trained: by name, in the order of their updates. All losses of a step come before its first update.
    train_dataset, validation_dataset: of dicts, collated into batches; without validation data nothing is validated.
    """

    name: ClassVar[str]
    run_class: ClassVar[type]
    model: nn.Module
    trained: dict[str, TrainedModule]
    train_dataset: Dataset
    validation_dataset: Dataset | None = None

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that are attributes of this task, and the trained ones."""
        own = [value for value in vars(self).values() if isinstance(value, nn.Module)]
        return [*own, *(trained.module for trained in self.trained.values())]

    def to(self, device: torch.device) -> None:
        """Move all modules; what is sharded is on its device already."""
        for module in self.modules:
            if not isinstance(module, FSDPModule):
                module.to(device)

    @abstractmethod
    def losses(self, batch: Any, context: StepContext) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """For each trained module that has started: its name, its loss (a mean over the clips) and scalars to log.

        A generator function: the loop runs backward on each loss before it asks for the next, and logs it as
        `loss/<name>`. A module's own loss calls its `module`; another's calls `bare`, with the parameters detached.
        What is random about a clip is drawn through `context`.
        """

    @classmethod
    def complete(cls, settings: DictConfig, earlier: Sequence[RunConfig] = ()) -> DictConfig:
        """Settings of a run with those filled in that follow from its inputs; `earlier` runs may still write these."""
        return settings

    @classmethod
    def saved_model(cls, run: Any, inputs: Any) -> nn.Module:
        """The model that a run of this stage will save, from the sizes of its inputs alone."""
        raise ValueError(f"the {cls.name} stage saves no model that another stage starts from")

    def example_batch(self, size: int) -> dict[str, Tensor]:
        """A batch of zeros with the shapes and types of `size` items of the training data."""
        raise ValueError(f"the {self.name} stage cannot be planned: its task defines no example_batch")

    @property
    def tokens_per_clip(self) -> int:
        """Tokens of a clip, for the plan's totals."""
        return 0

    def after_step(self, context: StepContext) -> dict[str, Tensor | float]:
        """Called after the updates of a step, on every process; returns more scalars to log."""
        return {}

    @abstractmethod
    def validate(self, batch: Any) -> dict[str, Tensor]:
        """Metrics of each clip, (B,) each, from `model` alone. Called in eval mode, in float32, without gradients; must
        not communicate between processes."""

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """More to log that follows from means over clips, as a perplexity does from a cross-entropy."""
        return {}

    def sample(self, batch: Any) -> Tensor | None:
        """uint8 (N, 3, T, H, W) videos of the batch to look at, or None. Called as `validate` is, on one process."""
        return None

    def extra_state(self) -> dict[str, Any]:
        """Tensors, numbers and strings, equal on all processes, that a resume needs besides weights and optimizers."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned."""
        if state:
            raise ValueError(f"the {self.name} task has no use for the extra state {sorted(state)}")

    @abstractmethod
    def export(self, folder: Path, training: Mapping[str, Any]) -> None:
        """Write the model, which holds the averaged weights when this is called, in the public format.

        training: facts of the run, for the model's card.
        """
