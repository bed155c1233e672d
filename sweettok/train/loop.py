"""The training loop of all stages: steps, log, samples, checkpoints and validation."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

import torch

from sweettok.data.dataset import make_loader, plain_errors
from sweettok.distributed import from_main, together
from sweettok.train import checkpoint
from sweettok.train.config import RunConfig
from sweettok.train.evaluate import check_best, evaluate, export, keep_best, write_samples
from sweettok.train.interrupts import Watchdog, explained_failures, ignore_signals_in_workers, stop_on_signals
from sweettok.train.log import Log
from sweettok.train.monitor import StepReport
from sweettok.train.session import Session, make_accelerator, start
from sweettok.train.step import Clock, train_step, window_means
from sweettok.train.task import Task


def fit(task: Task, run: RunConfig) -> bool:
    """Train `task` with the settings `run.train` on all launched processes, and export it to `<output_dir>/final`.

    Resumes from the latest checkpoint in the output folder.

    Returns:
        Whether the run is finished. False if a process received SIGTERM or SIGINT: all have saved and stopped then.

    Raises:
        ValueError: settings do not fit together, or too many clips cannot be read.
        FloatingPointError: too many steps in a row were not finite.
        OSError: another run uses the output folder, a file cannot be written, a data worker died or hangs, or another
            process of the run ended. The last complete checkpoint is kept.
    """
    output_dir, watchdog = Path(run.train.output_dir), Watchdog(run.train.step_timeout)
    with explained_failures(output_dir), stop_on_signals() as request, closing(watchdog), ExitStack() as owned:
        accelerator = make_accelerator(run.train)
        from_main(lambda: _enter(owned, run))
        found = from_main(lambda: checkpoint.find_resume(output_dir, run.train.resume))
        session = start(task, run, accelerator, request, watchdog)
        changed = checkpoint.resume(session.state, found) if found is not None else []
        check_best(session)
        from_main(lambda: checkpoint.write_config(run, output_dir / "config.yaml"))
        with closing(together(lambda: Log(run, session.state.step))) as log:
            clips = f"{run.train.global_batch_size} of {len(task.train_dataset):,} clips"
            devices = f"{accelerator.num_processes} x {accelerator.device.type}"
            log.note(f"{task.name}: {run.train.max_steps} steps of {clips}, on {devices}, to {output_dir}")
            if found is not None:
                log.note("; ".join([f"resumed from {found}", *changed]))
            return _train(session, log, found)


def _enter(owned: ExitStack, run: RunConfig) -> None:
    """Hold the lock of the output folder until `owned` ends."""
    owned.callback(checkpoint.claim(run))


def _train(session: Session, log: Log, found: Path | None) -> bool:
    """Train the remaining steps; returns False after a request to stop."""
    state, train, output_dir = session.state, session.state.run.train, session.output_dir
    first, clock = state.step, Clock()
    due = found is not None and _due(first, train.eval_every, train.max_steps)
    if due and from_main(lambda: not log.has(first, "eval/")):  # interrupted between saving and validating
        _validate(session, log)
    if first >= train.max_steps:
        log.note(f"the run is finished at step {first}: raise train.max_steps to train on")
    loader = make_loader(state.task.train_dataset, state.sampler, state.run.data.num_workers)
    batches = plain_errors(ignore_signals_in_workers(loader), session.patience)
    for step in range(first + 1, train.max_steps + 1):
        report = train_step(session, batches, clock)
        session.watchdog.progress()
        log.advance()
        last = step == train.max_steps
        saving = last or _due(step, train.save_every, train.max_steps)
        logging = saving or _due(step, train.log_every, train.max_steps)
        stopping = session.monitor.check(wait=logging) and not last
        if logging:
            summary = _summary(session, report, clock)
            from_main(lambda step=step, summary=summary: log.write(step, summary))
        with clock.stopped():
            if _due(step, train.sample_every, train.max_steps):
                write_samples(session, report.batch, output_dir / "samples")
            if saving or stopping:
                checkpoint.save(state, output_dir)
                session.watchdog.progress()
            if stopping:
                log.note(f"stopped by a signal: saved after step {step}, start again to resume")
                return False
            if _due(step, train.eval_every, train.max_steps):
                _validate(session, log)
    if state.step > first or not from_main(lambda: _is_exported(output_dir / "final", found)):
        export(session, output_dir / "final")
    log.note(f"finished: {output_dir / 'final'}")
    return True


def _due(step: int, every: int, last: int) -> bool:
    """Whether a step is a multiple of `every` or the last one; never if `every` is 0."""
    return every > 0 and (step % every == 0 or step == last)


def _validate(session: Session, log: Log) -> None:
    train, step = session.state.run.train, session.state.step
    if session.state.task.validation_dataset is None:
        return
    metrics = evaluate(session, train.eval_clips)
    if keep_best(session, metrics, session.output_dir / "best"):
        log.note(f"step {step} has the best {train.best_metric} so far")
    from_main(lambda: log.write(step, metrics))


def _is_exported(final: Path, found: Path | None) -> bool:
    """Whether `final` exists and is not older than the checkpoint `found`."""
    return final.exists() and (found is None or final.stat().st_mtime >= found.stat().st_mtime)


def _summary(session: Session, report: StepReport, clock: Clock) -> dict[str, float]:
    """Scalars for the log: means since the last line, learning rates, speed and memory."""
    summary = report.learning_rates | clock.report(session.share.global_batch)
    summary |= {"skipped_steps": session.state.skipped, "bad_clips": len(session.monitor.bad_clips)}
    device = session.accelerator.device
    peak_memory = getattr(getattr(torch, device.type), "max_memory_allocated", None)
    if peak_memory is not None:
        summary["peak_memory_gib"] = peak_memory(device) / 2**30
    values = window_means(session)
    values |= session.state.task.derive(values)
    return summary | {f"train/{name}": value for name, value in values.items()}
