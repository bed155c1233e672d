"""The training loop of every stage: data, step, log, sample, save, validate. It knows no loss by name."""

import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    gather_object,
    send_to_device,
)
from torch import Tensor, nn
from torch.utils.data import Subset

from sweettok.config import RunConfig, TrainConfig, to_dict
from sweettok.data.dataset import GlobalBatchSampler, make_eval_loader, make_loader
from sweettok.data.writer import write_video
from sweettok.train import checkpoint, sharding
from sweettok.train.checkpoint import RunState
from sweettok.train.ema import EMA
from sweettok.train.log import Log
from sweettok.train.task import Player, StepContext, Task

SAMPLE_FPS = 8
PATIENCE = timedelta(hours=2)  # that processes wait for the one that draws samples or writes


def fit(task: Task, run: RunConfig) -> None:
    """Train `task` as `run.train` says, on as many processes as were launched, and export it to `<output_dir>/final`.

    Goes on from the latest checkpoint of the output folder; a run that is finished does nothing more. ValueError for
    settings that do not fit together, FloatingPointError when a loss is no longer finite.
    """
    train, output_dir = run.train, Path(run.train.output_dir)
    accelerator = make_accelerator(train)
    found = checkpoint.find_resume(output_dir, train.resume)
    session = _start(task, run, accelerator)
    state = session.state
    changed = checkpoint.load(state, found) if found is not None else []
    accelerator.wait_for_everyone()
    log = _open_log(session, output_dir)
    try:
        if found is not None:
            log.note("; ".join([f"resumed from {found}", *changed]))
        first = state.step
        if first >= train.max_steps:
            log.note(f"the run is finished at step {first}: raise train.max_steps to train on")
        batches = iter(make_loader(task.train_dataset, state.sampler, run.data.num_workers))
        clock = Clock()
        for step in range(state.step + 1, train.max_steps + 1):
            report = train_step(session, batches, clock)
            log.advance()
            saving = _due(step, train.save_every, train.max_steps) or step == train.max_steps
            if saving or _due(step, train.log_every, train.max_steps):  # what is saved has been seen to be finite
                log.write(step, _summary(session, report, clock))
            with clock.stopped():
                if _due(step, train.sample_every, train.max_steps):
                    write_samples(session, report.batch, output_dir / "samples")
                if saving:
                    checkpoint.save(state, output_dir, accelerator.is_main_process)
                    accelerator.wait_for_everyone()
                if _due(step, train.eval_every, train.max_steps) and task.validation_dataset is not None:
                    log.write(step, evaluate(session))
        if state.step > first or not (output_dir / "final").exists():
            _export(session, output_dir / "final")
    finally:
        log.close()


# ------------------------------------------------------------------------------------------------------ setting up


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
        micro = share if micro is None else micro
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
    model_players: set[str]  # those whose updates change the model that is averaged
    twin: nn.Module | None  # of a sharded run: the model without weights


@dataclass
class Clock:
    """Time since the last summary, without what is not training."""

    start: float = field(default_factory=time.perf_counter)
    steps: int = 0
    data_seconds: float = 0.0

    @contextmanager
    def stopped(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.start += time.perf_counter() - begun

    def report(self, global_batch: int) -> dict[str, float]:
        """Throughput over all processes and seconds a step, of which this process waited for data; starts afresh."""
        step_seconds = (time.perf_counter() - self.start) / self.steps
        data_seconds = self.data_seconds / self.steps
        self.start, self.steps, self.data_seconds = time.perf_counter(), 0, 0.0
        return {
            "clips_per_second": global_batch / step_seconds,
            "step_seconds": step_seconds,
            "data_seconds": data_seconds,
        }


def make_accelerator(train: TrainConfig) -> Accelerator:
    """Devices, processes and precision. ValueError where the launch or the device would silently do something else."""
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=False)
    group = InitProcessGroupKwargs(timeout=PATIENCE)
    accelerator = Accelerator(mixed_precision=train.mixed_precision, kwargs_handlers=[ddp, group])
    launched = int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1
    if accelerator.num_processes < launched:
        raise ValueError(
            f"{launched} processes were launched, but each sees {accelerator.num_processes}: there is no GPU to share "
            "out. Set ACCELERATE_USE_CPU=true to train on CPUs"
        )
    kind = accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.FSDP) and not kind.value.startswith("MULTI_"):
        raise ValueError(
            f"the launcher's configuration asks for {kind.value}; only data parallelism is supported: plain "
            "(configs/accelerate/ddp.yaml) or fully sharded (configs/accelerate/fsdp.yaml)"
        )
    if sharding.asked():
        sharding.check(train)
    if train.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("train.mixed_precision=fp16 needs a GPU; use no or bf16 on a CPU")
    return accelerator


def _start(task: Task, run: RunConfig, accelerator: Accelerator) -> Session:
    """Move and wrap the players, and make what the run needs beside them."""
    world_size, rank = accelerator.num_processes, accelerator.process_index
    share = BatchShare.of(run.train, world_size, rank)
    twin = sharding.shard(task, accelerator) if sharding.asked() else None
    task.to(accelerator.device)
    for player in task.players.values() if twin is None else ():
        if run.train.compile:
            player.module.compile()
        player.module = accelerator.prepare(player.module)
    trained = {id(param) for param in task.model.parameters()}
    sampler = GlobalBatchSampler(
        num_items=len(task.train_dataset),
        global_batch=share.global_batch,
        rank=rank,
        world_size=world_size,
        micro_batch=share.micro_batch,
        seed=run.train.seed,
    )
    state = RunState(
        run, task, EMA(task.model, run.train.ema_decay), sampler, scaler=accelerator.scaler, world_size=world_size
    )
    model_players = {
        name for name, player in task.players.items() if any(id(param) in trained for param in player.parameters)
    }
    return Session(accelerator, state, share, model_players, twin)


def _open_log(session: Session, output_dir: Path) -> Log:
    state, train = session.state, session.state.run.train
    main = session.accelerator.is_main_process
    if main:
        output_dir.mkdir(parents=True, exist_ok=True)
        checkpoint.clean(output_dir)
        checkpoint.write_config(state.run, output_dir / "config.yaml")
    log = Log(
        output_dir,
        active=main,
        step=state.step,
        max_steps=train.max_steps,
        trackers=train.trackers,
        project=train.project,
        config=to_dict(state.run),
        tracker_id=state.tracker_id,
    )
    state.tracker_id = log.tracker_id
    return log


def _due(step: int, every: int, last: int) -> bool:
    """Whether something is due after so many steps: every so often and at the end; never if `every` is 0."""
    return every > 0 and (step % every == 0 or step == last)


# --------------------------------------------------------------------------------------------------------- the step


@dataclass
class StepReport:
    """Scalars of one step, one entry for each micro-batch that gave one, on the device; and its last micro-batch."""

    scalars: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    learning_rates: dict[str, float] = field(default_factory=dict)
    batch: Any = None


def train_step(session: Session, batches: Iterator[Any], clock: Clock) -> StepReport:
    """One update of each player that has started, from one global batch.

    The gradients are those of the mean loss over the global batch, however many processes and micro-batches share it.
    """
    state, share = session.state, session.share
    task, step, seed = state.task, state.step, state.run.train.seed
    report, playing = StepReport(), set()
    for index in range(share.micro_batches):
        asked = time.perf_counter()
        batch = next(batches)
        clock.data_seconds += time.perf_counter() - asked
        report.batch = send_to_device(batch, session.accelerator.device, non_blocking=True)
        context = share.context(step, seed, index)
        context.seed_default_generators()
        playing |= _backward(session, context, report, last=index == share.micro_batches - 1)
    started = [player for player in task.players.values() if step >= player.start_step]
    expected = {player.name for player in started}
    assert playing == expected, f"losses came from {sorted(playing)} at step {step}, not from {sorted(expected)}"
    updated = _update(session.accelerator, started, report)
    if updated & session.model_players:
        state.ema.update(task.model)
    for name, value in task.after_step(share.context(step, seed)).items():
        report.scalars[name].append(torch.as_tensor(value))
    state.step += 1
    state.sampler.advance()
    clock.steps += 1
    return report


def _backward(session: Session, context: StepContext, report: StepReport, last: bool) -> set[str]:
    """Add a micro-batch to the gradients; returns the players it had.

    Processes exchange gradients on the last one only; sharded ones on each, rather than keep whole gradients.
    """
    accelerator, task, playing = session.accelerator, session.state.task, set()
    with ExitStack() as stack:
        for player in task.players.values() if not last and session.twin is None else ():
            stack.enter_context(accelerator.no_sync(player.module))
        for name, loss, scalars in task.losses(report.batch, context):
            accelerator.backward(loss / session.share.micro_batches)
            playing.add(name)
            for key, value in {f"loss/{name}": loss, **scalars}.items():
                report.scalars[key].append(value.detach())
    return playing


def _update(accelerator: Accelerator, players: list[Player], report: StepReport) -> set[str]:
    """Clip, step and schedule each player; returns those that fp16 overflow did not keep from updating."""
    scaler, updated = accelerator.scaler, set()
    for player in players:
        if scaler is not None:
            scaler.unscale_(player.optimizer)
        norm = sharding.whole(torch.nn.utils.clip_grad_norm_(player.parameters, player.max_grad_norm))
        report.scalars[f"grad_norm/{player.name}"].append(norm)
        report.learning_rates[f"lr/{player.name}"] = player.optimizer.param_groups[0]["lr"]
        if scaler is None:
            player.optimizer.step()
        elif torch.isfinite(norm):
            scaler.step(player.optimizer)
        else:
            continue
        player.scheduler.step()
        updated.add(player.name)
    if scaler is not None:
        scaler.update()
    for player in players:
        player.optimizer.zero_grad(set_to_none=True)
    return updated


def _summary(session: Session, report: StepReport, clock: Clock) -> dict[str, float]:
    """What to log after a step, averaged over micro-batches and processes: the only wait for the device."""
    accelerator, step = session.accelerator, session.state.step

    def mean(entries: list[Tensor]) -> Tensor:
        return torch.stack([entry.to(accelerator.device, torch.float32) for entry in entries]).mean()

    names = sorted(report.scalars)
    means = torch.stack([mean(report.scalars[name]) for name in names])
    values = dict(zip(names, accelerator.reduce(means, "mean").tolist(), strict=True))
    vital = ("loss/",) if accelerator.scaler is not None else ("loss/", "grad_norm/")
    if any(not math.isfinite(value) for name, value in values.items() if name.startswith(vital)):
        told = ", ".join(f"{name} = {value}" for name, value in values.items() if not math.isfinite(value))
        raise FloatingPointError(f"step {step} is not finite: {told}")
    summary = report.learning_rates | clock.report(session.share.global_batch)
    peak_memory = getattr(getattr(torch, accelerator.device.type), "max_memory_allocated", None)
    if peak_memory is not None:
        summary["peak_memory_gib"] = peak_memory(accelerator.device) / 2**30
    values |= session.state.task.derive(values)
    return summary | {f"train/{name}": value for name, value in values.items()}


# ------------------------------------------------------------------------------------------- looking at it, keeping it


@contextmanager
def _averaged(state: RunState) -> Iterator[None]:
    """Inside, the model has its averaged weights and every player is in eval mode, without gradients."""
    roots = [state.task.model, *(player.bare for player in state.task.players.values())]
    modes = [(module, module.training) for root in roots for module in root.modules()]
    for root in roots:
        root.eval()
    try:
        with state.ema.applied(state.task.model), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _shown(session: Session, device: torch.device) -> Iterator[bool]:
    """Inside, on the main process, which alone gets True, the task's model is whole and has its averaged weights.

    On every process. A sharded model stays as it is: a whole copy on `device` stands in for it.
    """
    state, main = session.state, session.accelerator.is_main_process
    weights = sharding.gather(state.ema.shadow, keep=main) if session.twin is not None else None
    if not main:
        yield False
    elif weights is None:
        with _averaged(state):
            yield True
    else:
        with sharding.stand_in(state.task, session.twin, weights, device), torch.no_grad():
            yield True


def evaluate(session: Session) -> dict[str, float]:
    """Mean of each of the task's metrics over the validation clips, each counted once, with the averaged weights."""
    accelerator, task, train = session.accelerator, session.state.task, session.state.run.train
    dataset, size, world_size = task.validation_dataset, session.share.micro_batch, accelerator.num_processes
    if train.eval_clips is not None:
        dataset = Subset(dataset, range(min(train.eval_clips, len(dataset))))
    workers, is_sharded = session.state.run.data.num_workers, session.twin is not None
    loader = make_eval_loader(dataset, size, workers, accelerator.process_index, world_size)
    batches = sharding.in_step(loader, dataset, size, world_size) if is_sharded else zip(loader, repeat(True))
    totals: dict[str, tuple[float, int]] = {}
    with _averaged(session.state), accelerator.autocast() if is_sharded else nullcontext():
        for batch, counts in batches:
            metrics = task.validate(send_to_device(batch, accelerator.device))
            for name, values in metrics.items() if counts else ():
                total, count = totals.get(name, (0.0, 0))
                totals[name] = total + values.cpu().double().sum().item(), count + len(values)
    parts = gather_object([totals])
    means = {}
    for name in sorted(set().union(*parts)):
        total, count = map(sum, zip(*(part[name] for part in parts if name in part), strict=True))
        means[name] = total / count
    return {f"eval/{name}": value for name, value in (means | task.derive(means)).items()}


def write_samples(session: Session, batch: Any, folder: Path) -> None:
    """Let the task show the first validation clips, or else those of the batch, as `<step>_<i>.mp4`."""
    state, count, device = session.state, session.state.run.train.num_samples, session.accelerator.device
    if count < 1:
        return
    with _shown(session, device) as main:
        if not main:
            return
        dataset = state.task.validation_dataset
        if dataset is not None:
            few = Subset(dataset, range(min(count, len(dataset))))
            batch = send_to_device(next(iter(make_eval_loader(few, count, workers=0))), device)
        else:
            batch = {key: value[:count] for key, value in batch.items()}
        videos = state.task.sample(batch)
    for index, video in enumerate(videos if videos is not None else ()):
        write_video(folder / f"{state.step:08}_{index}.mp4", video.cpu(), SAMPLE_FPS)


def _export(session: Session, folder: Path) -> None:
    with _shown(session, torch.device("cpu")) as main:
        if main:
            with checkpoint.written_aside(folder) as aside:
                session.state.task.export(aside)
    session.accelerator.wait_for_everyone()
