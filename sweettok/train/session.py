"""One process's view of a run: its share of each batch, what it holds, and what a step told it."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from sweettok.data.config import DataConfig
from sweettok.data.dataset import patience
from sweettok.train.checkpoint import RunState
from sweettok.train.config import TrainConfig
from sweettok.train.health import Buffers, Health
from sweettok.train.task import StepContext


@dataclass(frozen=True)
class BatchShare:
    """One process's part of each global batch: `micro_batches` runs of `micro_batch` clips, from clip `start` on."""

    global_batch: int
    micro_batch: int
    micro_batches: int
    start: int

    @classmethod
    def of(cls, train: TrainConfig, world_size: int, rank: int) -> "BatchShare":
        """Derive it from the configuration. ValueError, naming what would fit, if the numbers do not divide."""
        total, micro = train.global_batch_size, train.micro_batch_size
        if total % world_size:
            low = max(total // world_size, 1) * world_size
            raise ValueError(
                f"train.global_batch_size {total} does not divide over {world_size} processes: "
                f"use a multiple of {world_size} ({low} or {low + world_size})"
            )
        share = total // world_size
        micro = share if micro is None else min(micro, share)
        if share % micro:
            fitting = ", ".join(str(size) for size in range(1, share + 1) if share % size == 0)
            raise ValueError(
                f"train.micro_batch_size {micro} does not divide the {share} clips that each of {world_size} processes "
                f"has of a global batch of {total}: use one of {fitting}"
            )
        return cls(total, micro, share // micro, rank * share)

    def context(self, step: int, seed: int, micro_index: int = 0) -> StepContext:
        """Context of one micro-batch of this process."""
        start = self.start + micro_index * self.micro_batch
        return StepContext(step, seed, start, self.micro_batch, self.global_batch)


@dataclass
class Session:
    """What every part of the loop needs at hand."""

    accelerator: Accelerator
    state: RunState
    share: BatchShare
    health: Health
    buffers: Buffers
    model_updaters: set[str]  # those whose updates change the model that is averaged
    twin: nn.Module | None  # of a sharded run: the model without weights

    @property
    def patience(self) -> float:
        """Seconds to wait for a batch of clips or tokens."""
        timeout = getattr(self.state.run.data, "read_timeout", DataConfig.read_timeout)
        return patience(self.share.micro_batch, timeout)


@dataclass
class StepReport:
    """Scalars of one step, one entry for each micro-batch that gave one, on the device; names of its clips and what
    was wrong with those that could not be read; and its last micro-batch."""

    scalars: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    learning_rates: dict[str, float] = field(default_factory=dict)
    clips: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    batch: Any = None

    def take(self, batch: Any) -> None:
        """Note a micro-batch; a task whose batches have no names or problems has none."""
        self.batch = batch
        if isinstance(batch, dict):
            self.clips += batch.get("key", [])
            self.problems += [problem for problem in batch.get("problem", []) if problem]
