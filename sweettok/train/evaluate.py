"""Looking at the averaged weights while a run goes on: validation, samples, exports. On every process."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import Subset

from sweettok.data.dataset import make_eval_loader, plain_errors
from sweettok.data.writer import write_video
from sweettok.train import checkpoint, sharding
from sweettok.train.checkpoint import RunState
from sweettok.train.session import Session
from sweettok.train.signals import shielded

SAMPLE_FPS = 8


@contextmanager
def averaged(state: RunState) -> Iterator[None]:
    """Inside, the model has its averaged weights and every trained module is in eval mode, without gradients."""
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


@contextmanager
def shown(session: Session, device: torch.device) -> Iterator[bool]:
    """Inside, on the main process, which alone gets True, the task's model is whole and has its averaged weights.

    A sharded model stays as it is: a whole copy on `device` stands in for it.
    """
    state, main = session.state, session.accelerator.is_main_process
    weights = sharding.gather(state.ema.shadow, keep=main) if session.twin is not None else None
    if not main:
        yield False
    elif weights is None:
        with averaged(state):
            yield True
    else:
        with sharding.stand_in(state.task, session.twin, weights, device), torch.no_grad():
            yield True


def evaluate(session: Session, clips: int | None = None) -> dict[str, float]:
    """Mean of each of the task's metrics over the first validation clips, or all, each counted once."""
    accelerator, task = session.accelerator, session.state.task
    dataset, size, world_size = task.validation_dataset, session.share.micro_batch, accelerator.num_processes
    if clips is not None:
        dataset = Subset(dataset, range(min(clips, len(dataset))))
    workers, is_sharded = session.state.run.data.num_workers, session.twin is not None
    loader = shielded(make_eval_loader(dataset, size, workers, accelerator.process_index, world_size))
    loader = plain_errors(loader, session.patience)
    batches = sharding.in_step(loader, dataset, size, world_size) if is_sharded else zip(loader, repeat(True))
    totals: dict[str, tuple[float, int]] = {}
    with averaged(session.state), accelerator.autocast() if is_sharded else nullcontext():
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
    with shown(session, device) as main:
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


def export(session: Session, folder: Path, record: Mapping[str, Any] | None = None) -> None:
    """Write the averaged model in the public format, whole or not at all, with `record` as metric.json beside it."""
    with shown(session, torch.device("cpu")) as main:
        if main:
            with checkpoint.written_aside(folder) as aside:
                session.state.task.export(aside, training_facts(session))
                if record is not None:
                    (aside / "metric.json").write_text(json.dumps(record) + "\n")
    session.accelerator.wait_for_everyone()


def training_facts(session: Session) -> dict[str, Any]:
    """What the card of an exported model says of the run."""
    state = session.state
    train = state.run.train
    return {
        "stage": state.task.name, "steps": state.step, "clips in a step": train.global_batch_size,
        "seed": train.seed, "precision": train.mixed_precision,
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------------- the best


def check_best(session: Session) -> None:
    """ValueError if `train.best_metric` is no metric of the task's validation, which one clip is put through."""
    name, task = session.state.run.train.best_metric, session.state.task
    if name is None:
        return
    if task.validation_dataset is None:
        raise ValueError(f"train.best_metric={name} needs validation clips: set data.validation")
    known = [key.removeprefix("eval/") for key in evaluate(session, clips=1)]
    if name not in known:
        told = ", ".join(known)
        raise ValueError(f"train.best_metric={name} is no metric of the {task.name} stage: use one of {told}")


def keep_best(session: Session, metrics: Mapping[str, float], folder: Path) -> bool:
    """Export to `folder` if its record is beaten, as `train.best_metric` and `best_mode` say; whether it was."""
    train, record = session.state.run.train, None
    if train.best_metric is None:
        return False
    name, mode, value = train.best_metric, train.best_mode, metrics[f"eval/{train.best_metric}"]
    if (folder / "metric.json").is_file():
        record = json.loads((folder / "metric.json").read_text())
    comparable = record is not None and (record["metric"], record["mode"]) == (name, mode)
    sign = 1 if mode == "max" else -1
    better = math.isfinite(value) and not (comparable and sign * record["value"] >= sign * value)
    if not gather_object([better])[0]:  # the main process decides: another may read what that already wrote
        return False
    export(session, folder, {"metric": name, "mode": mode, "value": value, "step": session.state.step})
    return True
