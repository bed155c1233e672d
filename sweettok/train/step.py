"""One step of training: forward, backward, update, moving average."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from sweettok.train import sharding
from sweettok.train.monitor import StepReport
from sweettok.train.session import Session
from sweettok.train.task import StepContext, TrainedModule


@dataclass
class Clock:
    """Training time since the last line of the log."""

    start: float = field(default_factory=time.perf_counter)
    steps: int = 0
    data_seconds: float = 0.0

    @contextmanager
    def stopped(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.start += time.perf_counter() - begun

    def report(self, global_batch: int) -> dict[str, float]:
        """Clips per second over all processes, seconds per step, and this process's waiting for data; then restart."""
        now = time.perf_counter()
        seconds, data_seconds = (now - self.start) / self.steps, self.data_seconds / self.steps
        self.start, self.steps, self.data_seconds = now, 0, 0.0
        return {"clips_per_second": global_batch / seconds, "step_seconds": seconds, "data_seconds": data_seconds}


def train_step(session: Session, batches: Iterator[Any], clock: Clock) -> StepReport:
    """Update each trained module that has started, from one global batch.

    Gradients are those of the mean loss over the global batch, for any number of processes and micro-batches. If a loss
    or gradient is not finite on any process, no weight, moment or buffer changes. The moving average and the schedules
    still advance, so that they depend on the step alone.
    """
    state, share = session.state, session.share
    task, step, seed = state.task, state.step, state.run.train.seed
    report, names = StepReport(), set()
    session.buffers.save()
    for index in range(share.micro_batches):
        start = time.perf_counter()
        batch = next(batches)
        clock.data_seconds += time.perf_counter() - start
        report.take(send_to_device(batch, session.accelerator.device, non_blocking=True))
        context = share.context(step, seed, index)
        context.seed_default_generators()
        names |= _backward(session, context, report, last=index == share.micro_batches - 1)
    started = [trained for trained in task.trained.values() if step >= trained.start_step]
    expected = {trained.name for trained in started}
    assert names == expected, f"losses came from {sorted(names)} at step {step}, not from {sorted(expected)}"
    skip = _update(session, started, report)
    session.buffers.restore(skip)
    if names & session.updates_model:
        state.ema.update(task.model)
    for name, value in task.after_step(share.context(step, seed)).items():
        report.add(name, value)
    session.buffers.restore(skip)
    state.step += 1
    state.sampler.advance()
    clock.steps += 1
    session.window.append(report.scalars)
    return report


def _backward(session: Session, context: StepContext, report: StepReport, last: bool) -> set[str]:
    """Add the gradients of a micro-batch; returns the names of its losses.

    Gradients are reduced over the processes in the last micro-batch; sharded gradients in every one, to save memory.
    """
    accelerator, task, names = session.accelerator, session.state.task, set()
    with ExitStack() as stack:
        for trained in task.trained.values() if not last and session.empty_model is None else ():
            stack.enter_context(accelerator.no_sync(trained.module))
        for name, loss, scalars in task.losses(report.batch, context):
            accelerator.backward(loss / session.share.micro_batches)
            names.add(name)
            for key, value in {f"loss/{name}": loss, **scalars}.items():
                report.add(key, value)
    return names


def _update(session: Session, started: list[TrainedModule], report: StepReport) -> Tensor:
    """Clip gradients, update and schedule each trained module; returns the scalar of `StepMonitor.exchange`.

    It is passed to the optimizers as `found_inf`, like a loss scaler's, which they read on the device.
    """
    scaler = session.accelerator.scaler
    for trained in started:
        if scaler is not None:
            scaler.unscale_(trained.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(trained.parameters, trained.max_grad_norm)
        report.add(f"grad_norm/{trained.name}", sharding.whole(norm))
        report.learning_rates[f"lr/{trained.name}"] = trained.optimizer.param_groups[0]["lr"]
    skip = session.monitor.exchange(report)
    for trained in started:
        trained.optimizer.found_inf = skip
        trained.optimizer.step()
        del trained.optimizer.found_inf
        torch.autograd.graph.increment_version(trained.parameters)  # fused optimizers do not
        trained.optimizer.zero_grad(set_to_none=True)
        trained.scheduler.step()
    if scaler is not None:
        scaler.update()
    return skip


def window_means(session: Session) -> dict[str, float]:
    """Mean of each scalar over all processes and the steps since the last call. Waits for the device.

    Steps with a non-finite value are left out; the mean is NaN if no step is left.
    """
    window, device = session.window, session.accelerator.device
    session.window = []
    entries = [entry for scalars in window for entry in sorted(scalars.items())]
    values = [value.to(device, torch.float32) for _, values in entries for value in values]
    flat = iter(session.accelerator.reduce(torch.stack(values), "mean").tolist())
    means: dict[str, list[float]] = {name: [] for name in sorted({name for name, _ in entries})}
    for name, of_step in entries:
        means[name].append(math.fsum(next(flat) for _ in of_step) / len(of_step))
    finite = {name: [value for value in of_steps if math.isfinite(value)] for name, of_steps in means.items()}
    return {name: math.fsum(of_steps) / len(of_steps) if of_steps else math.nan for name, of_steps in finite.items()}
