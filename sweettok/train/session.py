"""Set-up of one process of a run: device, share of each batch, and the objects that the loop uses."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn

from sweettok.data.config import DataConfig
from sweettok.data.dataset import GlobalBatchSampler, batch_timeout
from sweettok.distributed import join_processes
from sweettok.train import sharding
from sweettok.train.checkpoint import RunState
from sweettok.train.config import RunConfig, TrainConfig
from sweettok.train.ema import EMA
from sweettok.train.interrupts import StopRequest, Watchdog
from sweettok.train.monitor import BufferBackup, StepMonitor
from sweettok.train.task import StepContext, Task

TIMEOUT = timedelta(hours=2)  # longest wait for the process that samples or writes files


@dataclass(frozen=True)
class BatchShare:
    """One process's part of each global batch: `micro_batches` times `micro_batch` clips, from clip `start` on."""

    global_batch: int
    micro_batch: int
    micro_batches: int
    start: int

    @classmethod
    def of(cls, train: TrainConfig, world_size: int, rank: int) -> BatchShare:
        """The share of a process. ValueError, naming the nearest valid sizes, if the sizes do not divide."""
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
    """The objects of a run that the loop uses."""

    accelerator: Accelerator
    state: RunState
    share: BatchShare
    monitor: StepMonitor
    buffers: BufferBackup
    watchdog: Watchdog
    updates_model: set[str]  # names of the trained modules that have parameters of the averaged model
    empty_model: nn.Module | None  # the model without weights, in a sharded run
    window: list[dict[str, list[Tensor]]] = field(default_factory=list)  # scalars of steps since the last log line

    @property
    def output_dir(self) -> Path:
        return Path(self.state.run.train.output_dir)

    @property
    def patience(self) -> float:
        """Longest wait for a batch, in seconds."""
        timeout = getattr(self.state.run.data, "read_timeout", DataConfig.read_timeout)
        return batch_timeout(self.share.micro_batch, timeout)


def make_accelerator(train: TrainConfig) -> Accelerator:
    """Join the launched processes and set the precision. ValueError for unsupported launcher settings."""
    join_processes(TIMEOUT)
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    torch.set_float32_matmul_precision("high" if train.tf32 else "highest")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = train.tf32, train.cudnn_benchmark
    accelerator = Accelerator(mixed_precision=train.mixed_precision, kwargs_handlers=[ddp])
    kind = accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.FSDP) and not kind.value.startswith("MULTI_"):
        raise ValueError(
            f"the launcher's configuration selects {kind.value}; only data parallelism is supported: plain "
            "(configs/accelerate/ddp.yaml) or fully sharded (configs/accelerate/fsdp.yaml)"
        )
    if sharding.is_enabled():
        sharding.check(train)
    if train.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("train.mixed_precision=fp16 needs a GPU; use no or bf16 on a CPU")
    return accelerator


def start(
    task: Task,
    run: RunConfig,
    accelerator: Accelerator,
    request: StopRequest | None = None,
    watchdog: Watchdog | None = None,
) -> Session:
    """Move and wrap the trained modules, and create the other objects of a run."""
    for trained in task.trained.values():
        if not trained.optimizer.defaults.get("fused"):
            raise ValueError(f"the optimizer of {trained.name} must be fused=True, so that the device can skip a step")
    world_size, rank = accelerator.num_processes, accelerator.process_index
    share = BatchShare.of(run.train, world_size, rank)
    empty_model = sharding.shard(task, accelerator) if sharding.is_enabled() else None
    task.to(accelerator.device)
    for trained in task.trained.values() if empty_model is None else ():
        if run.train.compile:
            trained.module.compile()
        with warnings.catch_warnings():  # accelerate knows no other name of this argument
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            trained.module = accelerator.prepare(trained.module)
    process = {"rank": rank, "world_size": world_size, "micro_batch": share.micro_batch}
    sampler = GlobalBatchSampler(len(task.train_dataset), share.global_batch, seed=run.train.seed, **process)
    state = RunState(run, task, EMA(task.model, run.train.ema_decay), sampler, accelerator.scaler)
    of_model = {id(param) for param in task.model.parameters()}
    return Session(
        accelerator,
        state,
        share,
        StepMonitor(state, accelerator.device, request or StopRequest()),
        BufferBackup([task.model, *(trained.bare for trained in task.trained.values())]),
        watchdog or Watchdog(0),
        {name for name, trained in task.trained.items() if any(id(param) in of_model for param in trained.parameters)},
        empty_model,
    )
