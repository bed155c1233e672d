"""The training loop of every stage: steps, and in between logs, samples, checkpoints and validation."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import torch

from sweettok.config import to_dict
from sweettok.data.dataset import make_loader, plain_errors
from sweettok.distributed import from_main, rank, together
from sweettok.store import write_aside
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
    """Train `task` as `run.train` says, on as many processes as were launched, and export it to `<output_dir>/final`.

    Resumes from the latest checkpoint of the output folder; a finished run does nothing more.

    Returns:
        Whether the run is finished: False after SIGTERM or SIGINT, on any process, made all of them save and stop.

    Raises:
        ValueError: settings do not fit together, or too many clips cannot be read.
        FloatingPointError: too many steps in a row were not finite.
        OSError: a file cannot be written, a process that reads clips died or hangs, or one of the run's is lost. The
            last complete checkpoint stays.
    """
    output_dir, watchdog = Path(run.train.output_dir), Watchdog(run.train.step_timeout)
    with explained_failures(output_dir), stop_on_signals() as request, closing(watchdog):
        accelerator = make_accelerator(run.train)
        found = from_main(lambda: checkpoint.find_resume(output_dir, run.train.resume))
        session = start(task, run, accelerator, request, watchdog)
        changed = checkpoint.resume(session.state, found) if found is not None else []
        check_best(session)
        with closing(_open_log(session)) as log:
            log.note(_opening(session))
            if found is not None:
                log.note("; ".join([f"resumed from {found}", *changed]))
            return _train(session, log, found)


def _train(session: Session, log: Log, found: Path | None) -> bool:
    """Train the steps that are left; returns whether that was all of them."""
    state, train, output_dir = session.state, session.state.run.train, session.output_dir
    first, clock = state.step, Clock()
    if found is not None and _due(first, train.eval_every, train.max_steps) and _validation_is_missing(log, first):
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
                log.note(f"asked to stop: saved after step {step}, start again to resume")
                return False
            if _due(step, train.eval_every, train.max_steps):
                _validate(session, log)
    if state.step > first or not from_main(lambda: _is_exported(output_dir / "final", found)):
        export(session, output_dir / "final")
    log.note(f"finished: {output_dir / 'final'}")
    return True


def _due(step: int, every: int, last: int) -> bool:
    """Whether something is due after so many steps: every so often and at the end; never if `every` is 0."""
    return every > 0 and (step % every == 0 or step == last)


def _validate(session: Session, log: Log) -> None:
    train, step = session.state.run.train, session.state.step
    if session.state.task.validation_dataset is None:
        return
    metrics = evaluate(session, train.eval_clips)
    if keep_best(session, metrics, session.output_dir / "best"):
        log.note(f"step {step} has the best {train.best_metric} so far")
    from_main(lambda: log.write(step, metrics))


def _validation_is_missing(log: Log, step: int) -> bool:
    """Whether a run was interrupted between saving and validating after `step`."""
    return from_main(lambda: not log.has(step, "eval/"))


def _is_exported(final: Path, found: Path | None) -> bool:
    """Whether `final` is there, and not from before the checkpoint `found`, as when an export was interrupted."""
    return final.exists() and (found is None or final.stat().st_mtime >= found.stat().st_mtime)


# ------------------------------------------------------------------------------------------------------------------ log


def _open_log(session: Session) -> Log:
    state, train, output_dir = session.state, session.state.run.train, session.output_dir

    def write_config() -> None:
        with write_aside(output_dir / "config.yaml") as aside:
            checkpoint.write_config(state.run, aside)

    from_main(write_config)
    log = together(
        lambda: Log(
            output_dir,
            active=rank() == 0,
            step=state.step,
            max_steps=train.max_steps,
            trackers=train.trackers,
            project=train.project,
            config=to_dict(state.run),
            tracker_id=state.tracker_id,
        )
    )
    state.tracker_id = log.tracker_id
    return log


def _opening(session: Session) -> str:
    """What is about to be trained, on which data and devices, in a line."""
    train, accelerator = session.state.run.train, session.accelerator
    clips = f"{train.global_batch_size} of {len(session.state.task.train_dataset):,} clips"
    devices = f"{accelerator.num_processes} x {accelerator.device.type}"
    return f"{session.state.task.name}: {train.max_steps} steps of {clips}, on {devices}, to {train.output_dir}"


def _summary(session: Session, report: StepReport, clock: Clock) -> dict[str, float]:
    """What to log after a step: means since the last line, and the speed."""
    summary = report.learning_rates | clock.report(session.share.global_batch)
    summary |= {"skipped_steps": session.state.skipped, "bad_clips": len(session.monitor.bad_clips)}
    device = session.accelerator.device
    peak_memory = getattr(getattr(torch, device.type), "max_memory_allocated", None)
    if peak_memory is not None:
        summary["peak_memory_gib"] = peak_memory(device) / 2**30
    values = window_means(session)
    values |= session.state.task.derive(values)
    return summary | {f"train/{name}": value for name, value in values.items()}
