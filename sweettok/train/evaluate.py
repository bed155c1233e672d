"""Validation, samples and export of the averaged weights during a run. Every process must call these functions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import Dataset, Subset

from sweettok.data.dataset import make_eval_loader, plain_errors
from sweettok.data.writer import write_video
from sweettok.distributed import from_main, gather_objects, together
from sweettok.train import sharding
from sweettok.train.checkpoint import write_folder_aside
from sweettok.train.interrupts import ignore_signals_in_workers
from sweettok.train.session import Session

SAMPLE_FPS = 8


@contextmanager
def averaged(session: Session, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Inside the block, the task's model has the averaged weights, in eval mode and without gradients.

    A sharded model is replaced by a whole one with `weights`, the gathered averages.
    """
    state = session.state
    if session.empty_model is not None:
        with sharding.whole_model(state.task, session.empty_model, weights), torch.no_grad():
            yield
        return
    roots = [state.task.model, *(trained.bare for trained in state.task.trained.values())]
    modes = [(module, module.training) for root in roots for module in root.modules()]
    for root in roots:
        root.eval()
    try:
        with state.ema.applied(state.task.model), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def evaluate(session: Session, clips: int | None = None) -> dict[str, float]:
    """Mean of each of the task's metrics over `clips` validation clips, spread evenly over the list, or over all."""
    accelerator, task = session.accelerator, session.state.task
    dataset, workers = spread(task.validation_dataset, clips), session.state.run.data.num_workers
    process = accelerator.process_index, accelerator.num_processes
    weights = sharding.gather(session.state.ema.shadow, accelerator.device)

    def own_totals() -> dict[str, tuple[float, int]]:
        loader = make_eval_loader(dataset, session.share.micro_batch, workers, *process)
        totals: dict[str, tuple[float, int]] = {}
        with averaged(session, weights):
            for batch in plain_errors(ignore_signals_in_workers(loader), session.patience):
                for name, values in task.validate(send_to_device(batch, accelerator.device)).items():
                    total, count = totals.get(name, (0.0, 0))
                    totals[name] = total + values.cpu().double().sum().item(), count + len(values)
                session.watchdog.progress()
        return totals

    parts, means = gather_objects(together(own_totals)), {}
    for name in sorted(set().union(*parts)):
        total, count = map(sum, zip(*(part[name] for part in parts if name in part), strict=True))
        means[name] = total / count
    return {f"eval/{name}": value for name, value in (means | task.derive(means)).items()}


def spread(dataset: Dataset, count: int | None) -> Dataset:
    """`count` items spread evenly over a dataset, which may be sorted by class; all items for None."""
    if count is None or count >= len(dataset):
        return dataset
    return Subset(dataset, [index * len(dataset) // count for index in range(count)])


def on_main(session: Session, device: torch.device, work: Callable[[], Any]) -> None:
    """Run `work()` on the main process, with the task's model whole, averaged and on `device` if it was sharded."""
    is_sharded = session.empty_model is not None
    weights = sharding.gather(session.state.ema.shadow) if is_sharded else None

    def work_with_averages() -> None:
        placed = {name: value.to(device) for name, value in weights.items()} if is_sharded else None
        with averaged(session, placed):
            work()

    from_main(work_with_averages)
    session.watchdog.progress()


def write_samples(session: Session, batch: Any, folder: Path) -> None:
    """Write the task's samples of a few validation clips, or else clips of the batch, as `<step>_<i>.mp4`."""
    state, count, device = session.state, session.state.run.train.num_samples, session.accelerator.device
    if count < 1:
        return

    def sample() -> None:
        if (dataset := state.task.validation_dataset) is not None:
            shown = send_to_device(next(iter(make_eval_loader(spread(dataset, count), count, workers=0))), device)
        else:
            shown = {key: value[:count] for key, value in batch.items()}
        videos = state.task.sample(shown)
        for index, video in enumerate(videos if videos is not None else ()):
            write_video(folder / f"{state.step:08}_{index}.mp4", video.cpu(), SAMPLE_FPS)

    on_main(session, device, sample)


def export(session: Session, folder: Path, record: Mapping[str, Any] | None = None) -> None:
    """Write the averaged model in the public format, and `record` as metric.json in the same folder."""
    state, train = session.state, session.state.run.train
    facts = {"stage": state.task.name, "steps": state.step, "clips in a step": train.global_batch_size}
    facts |= {"seed": train.seed, "precision": train.mixed_precision}

    def write() -> None:
        with write_folder_aside(folder) as aside:
            state.task.export(aside, facts)
            if record is not None:
                (aside / "metric.json").write_text(json.dumps(record) + "\n")

    on_main(session, torch.device("cpu"), write)


def check_best(session: Session) -> None:
    """Raise ValueError unless `train.best_metric` is a metric of the task, found by validating one clip."""
    name, task = session.state.run.train.best_metric, session.state.task
    if name is None:
        return
    if task.validation_dataset is None:
        raise ValueError(f"train.best_metric={name} needs validation clips: set data.validation")
    known = [key.removeprefix("eval/") for key in evaluate(session, clips=1)]
    if name not in known:
        raise ValueError(
            f"train.best_metric={name} is no metric of the {task.name} stage: use one of {', '.join(known)}"
        )


def keep_best(session: Session, metrics: Mapping[str, float], folder: Path) -> bool:
    """Export to `folder` if `train.best_metric` is better than the one in its metric.json; returns whether it is."""
    train = session.state.run.train
    if train.best_metric is None:
        return False
    name, mode, value = train.best_metric, train.best_mode, metrics[f"eval/{train.best_metric}"]

    def is_better() -> bool:
        path, sign = folder / "metric.json", 1 if mode == "max" else -1
        record = json.loads(path.read_text()) if path.is_file() else {}
        comparable = (record.get("metric"), record.get("mode")) == (name, mode)
        return math.isfinite(value) and not (comparable and sign * record["value"] >= sign * value)

    if not from_main(is_better):
        return False
    export(session, folder, {"metric": name, "mode": mode, "value": value, "step": session.state.step})
    return True
