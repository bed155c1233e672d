"""The training loop of every stage: data, step, log, sample, save, validate. It knows no loss by name."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
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
from torch import Tensor

from sweettok.config import to_dict
from sweettok.data.dataset import GlobalBatchSampler, make_loader, plain_errors
from sweettok.train import checkpoint, failures, sharding, signals
from sweettok.train.checkpoint import RunState
from sweettok.train.config import RunConfig, TrainConfig
from sweettok.train.ema import EMA
from sweettok.train.evaluate import check_best, evaluate, export, keep_best, write_samples
from sweettok.train.health import Buffers, Health
from sweettok.train.log import Log
from sweettok.train.session import BatchShare, Session, StepReport
from sweettok.train.signals import StopRequest
from sweettok.train.task import StepContext, Task, TrainedModule

PATIENCE = timedelta(hours=2)  # that processes wait for the one that draws samples or writes


def fit(task: Task, run: RunConfig) -> bool:
    """Train `task` as `run.train` says, on as many processes as were launched, and export it to `<output_dir>/final`.

    Goes on from the latest checkpoint of the output folder; a run that is finished does nothing more. Returns whether
    it is finished: False after SIGTERM or SIGINT, on any process, made all of them save after the same step. ValueError
    for settings that do not fit together and for too many clips that cannot be read, FloatingPointError after too many
    steps that are not finite, OSError when a file cannot be written, a process that reads clips died or hangs, or one
    of the run's is gone; the last whole checkpoint then stays.
    """
    with failures.told(Path(run.train.output_dir)), signals.listening() as request:
        accelerator = make_accelerator(run.train)
        found = checkpoint.find_resume(Path(run.train.output_dir), run.train.resume)
        session = _start(task, run, accelerator, request)
        changed = checkpoint.load(session.state, found) if found is not None else []
        check_best(session)
        accelerator.wait_for_everyone()
        with closing(_open_log(session)) as log:
            log.note(_opening(session))
            if found is not None:
                log.note("; ".join([f"resumed from {found}", *changed]))
            return _train(session, log, found)


def _train(session: Session, log: Log, found: Path | None) -> bool:
    """The steps that are left; whether that was all of them."""
    state, train = session.state, session.state.run.train
    task, first, output_dir = state.task, state.step, Path(train.output_dir)
    if found is not None and _due(first, train.eval_every, train.max_steps) and _owes_validation(log, first):
        _validate(session, log, first)
    if first >= train.max_steps:
        log.note(f"the run is finished at step {first}: raise train.max_steps to train on")
    workers = state.run.data.num_workers
    loader = signals.shielded(make_loader(task.train_dataset, state.sampler, workers))
    batches = plain_errors(loader, session.patience)
    clock = Clock()
    for step in range(first + 1, train.max_steps + 1):
        report = train_step(session, batches, clock)
        log.advance()
        last = step == train.max_steps
        saving = last or _due(step, train.save_every, train.max_steps)
        logging = saving or _due(step, train.log_every, train.max_steps)
        stopping = session.health.look(wait=logging) and not last
        if logging:
            log.write(step, _summary(session, report, clock))
        with clock.stopped():
            if _due(step, train.sample_every, train.max_steps):
                write_samples(session, report.batch, output_dir / "samples")
            if saving or stopping:
                checkpoint.save(state, output_dir, session.accelerator.is_main_process)
            if stopping:
                log.note(f"asked to stop: saved after step {step}, start again to go on")
                return False
            if _due(step, train.eval_every, train.max_steps):
                _validate(session, log, step)
    if state.step > first or not _exported(output_dir / "final", found):
        export(session, output_dir / "final")
    log.note(f"finished: {output_dir / 'final'}")
    return True


def _opening(session: Session) -> str:
    """What is about to be trained, on what and where to, in a line."""
    train, accelerator = session.state.run.train, session.accelerator
    clips = f"{train.global_batch_size} of {len(session.state.task.train_dataset):,} clips"
    where = f"{accelerator.num_processes} x {accelerator.device.type}"
    return f"{session.state.task.name}: {train.max_steps} steps of {clips}, on {where}, to {train.output_dir}"


# ------------------------------------------------------------------------------------------------------ setting up


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


def _start(task: Task, run: RunConfig, accelerator: Accelerator, request: StopRequest | None = None) -> Session:
    """Move and wrap the trained modules, and make what the run needs beside them."""
    for trained in task.trained.values():
        if not trained.optimizer.defaults.get("fused"):
            raise ValueError(f"the optimizer of {trained.name} must be fused=True, so that the device can skip a step")
    world_size, rank = accelerator.num_processes, accelerator.process_index
    share = BatchShare.of(run.train, world_size, rank)
    twin = sharding.shard(task, accelerator) if sharding.asked() else None
    task.to(accelerator.device)
    for trained in task.trained.values() if twin is None else ():
        if run.train.compile:
            trained.module.compile()
        trained.module = accelerator.prepare(trained.module)
    of_model = {id(param) for param in task.model.parameters()}
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
    model_updaters = {
        name for name, trained in task.trained.items() if any(id(param) in of_model for param in trained.parameters)
    }
    health = Health(state, accelerator.device, accelerator.is_main_process, request or StopRequest())
    buffers = Buffers([task.model, *(trained.bare for trained in task.trained.values())])
    return Session(accelerator, state, share, health, buffers, model_updaters, twin)


def _open_log(session: Session) -> Log:
    state, train = session.state, session.state.run.train
    output_dir, main = Path(train.output_dir), session.accelerator.is_main_process
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


def train_step(session: Session, batches: Iterator[Any], clock: Clock) -> StepReport:
    """One update of each trained module that has started, from one global batch.

    The gradients are those of the mean loss over the global batch, however many processes and micro-batches share it.
    If a loss or gradient is not finite, on any process, no weight, moment or buffer changes; averages and schedules go
    on as after an update of zero, so that they depend on the step alone.
    """
    state, share = session.state, session.share
    task, step, seed = state.task, state.step, state.run.train.seed
    report, playing = StepReport(), set()
    session.buffers.keep()
    for index in range(share.micro_batches):
        asked = time.perf_counter()
        batch = next(batches)
        clock.data_seconds += time.perf_counter() - asked
        report.take(send_to_device(batch, session.accelerator.device, non_blocking=True))
        context = share.context(step, seed, index)
        context.seed_default_generators()
        playing |= _backward(session, context, report, last=index == share.micro_batches - 1)
    started = [trained for trained in task.trained.values() if step >= trained.start_step]
    expected = {trained.name for trained in started}
    assert playing == expected, f"losses came from {sorted(playing)} at step {step}, not from {sorted(expected)}"
    skip = _update(session, started, report)
    session.buffers.restore(skip)
    if playing & session.model_updaters:
        state.ema.update(task.model)
    for name, value in task.after_step(share.context(step, seed)).items():
        report.scalars[name].append(torch.as_tensor(value))
    session.buffers.restore(skip)
    state.step += 1
    state.sampler.advance()
    clock.steps += 1
    return report


def _backward(session: Session, context: StepContext, report: StepReport, last: bool) -> set[str]:
    """Add a micro-batch to the gradients; returns the names of the losses it had.

    Processes exchange gradients on the last one only; sharded ones on each, rather than keep whole gradients.
    """
    accelerator, task, playing = session.accelerator, session.state.task, set()
    with ExitStack() as stack:
        for trained in task.trained.values() if not last and session.twin is None else ():
            stack.enter_context(accelerator.no_sync(trained.module))
        for name, loss, scalars in task.losses(report.batch, context):
            accelerator.backward(loss / session.share.micro_batches)
            playing.add(name)
            for key, value in {f"loss/{name}": loss, **scalars}.items():
                report.scalars[key].append(value.detach())
    return playing


def _update(session: Session, started: list[TrainedModule], report: StepReport) -> Tensor:
    """Clip, step and schedule each trained module, unless a number is not finite; returns `Health.vote`.

    The optimizers get it as a loss scaler would hand it to them, and read it on the device.
    """
    scaler = session.accelerator.scaler
    for trained in started:
        if scaler is not None:
            scaler.unscale_(trained.optimizer)
        norm = sharding.whole(torch.nn.utils.clip_grad_norm_(trained.parameters, trained.max_grad_norm))
        report.scalars[f"grad_norm/{trained.name}"].append(norm)
        report.learning_rates[f"lr/{trained.name}"] = trained.optimizer.param_groups[0]["lr"]
    skip = session.health.vote(report)
    for trained in started:
        trained.optimizer.found_inf = skip
        trained.optimizer.step()
        del trained.optimizer.found_inf
        torch.autograd.graph.increment_version(trained.parameters)  # which fused optimizers leave as it is
        trained.optimizer.zero_grad(set_to_none=True)
        trained.scheduler.step()
    if scaler is not None:
        scaler.update()
    return skip


def _summary(session: Session, report: StepReport, clock: Clock) -> dict[str, float]:
    """What to log after a step, averaged over micro-batches and processes: the only wait for the device."""
    accelerator = session.accelerator

    def mean(entries: list[Tensor]) -> Tensor:
        return torch.stack([entry.to(accelerator.device, torch.float32) for entry in entries]).mean()

    names = sorted(report.scalars)
    means = torch.stack([mean(report.scalars[name]) for name in names])
    values = dict(zip(names, accelerator.reduce(means, "mean").tolist(), strict=True))
    summary = report.learning_rates | clock.report(session.share.global_batch)
    summary |= {"skipped_steps": session.state.skipped, "bad_clips": len(session.health.bad_clips)}
    peak_memory = getattr(getattr(torch, accelerator.device.type), "max_memory_allocated", None)
    if peak_memory is not None:
        summary["peak_memory_gib"] = peak_memory(accelerator.device) / 2**30
    values |= session.state.task.derive(values)
    return summary | {f"train/{name}": value for name, value in values.items()}


# ------------------------------------------------------------------------------------------------------- now and then


def _validate(session: Session, log: Log, step: int) -> None:
    if session.state.task.validation_dataset is None:
        return
    train = session.state.run.train
    metrics = evaluate(session, train.eval_clips)
    if keep_best(session, metrics, Path(train.output_dir) / "best"):
        log.note(f"step {step} has the best {train.best_metric} so far")
    log.write(step, metrics)


def _owes_validation(log: Log, step: int) -> bool:
    """Whether a run was broken off between saving and validating after `step`; the same on every process."""
    return gather_object([log.active and not log.has(step, "eval/")])[0]


def _exported(final: Path, found: Path | None) -> bool:
    """Whether `final` is there, and not from before the checkpoint `found`, as when an export was broken off."""
    return final.exists() and (found is None or final.stat().st_mtime >= found.stat().st_mtime)
