"""Checkpoint folders: everything a run needs to go on as if it had never stopped.

`<output_dir>/checkpoint-<step>/` holds
  config.yaml              the resolved configuration
  state.json               format version, task, step, number of processes, sampler position and seed, the moving
                           average's count, skipped steps, the loss scaler of fp16, the run's identity for trackers
  model.safetensors        the task's model
  ema.safetensors          its moving average, buffers included
  <name>.safetensors       what a module trains outside the model, as a discriminator
  optimizers.pt            optimizers and schedules of all trained modules, and the task's extra state
Random numbers are functions of (seed, step), so those two are their state, for any number of processes.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.amp import GradScaler

from sweettok.config import to_dict
from sweettok.data.dataset import GlobalBatchSampler
from sweettok.store import write_aside
from sweettok.train.config import RunConfig
from sweettok.train.ema import EMA
from sweettok.train.sharding import gather, scatter, scatter_moments, sharded
from sweettok.train.task import Task, TrainedModule

FORMAT_VERSION = 2
_NAME = re.compile(r"checkpoint-(\d+)")
_PARTIAL = ".partial"


@dataclass
class RunState:
    """The live objects of a run that a checkpoint saves and restores."""

    run: RunConfig
    task: Task
    ema: EMA
    sampler: GlobalBatchSampler
    scaler: GradScaler | None = None
    world_size: int = 1
    step: int = 0
    tracker_id: str | None = None
    skipped: int = 0  # steps that were not finite, and those of them since the last that was
    skipped_in_a_row: int = 0


def save(state: RunState, output_dir: Path, main: bool = True) -> Path:
    """Write `checkpoint-<step>`, whole or not at all, and drop the oldest beyond `keep_checkpoints`.

    On every process, of which the `main` one writes: there, in its memory, sharded tensors come together file by file.
    OSError, on every process, if it cannot be written, as on a full disk.
    """
    folder, error = output_dir / f"checkpoint-{state.step}", None
    try:
        with ExitStack() as stack:
            try:
                aside = stack.enter_context(written_aside(folder)) if main else None
            except OSError as failure:
                aside, error = None, failure
            error = _write(state, aside) or error
            if error is not None:
                raise error
        if main and state.run.train.keep_checkpoints is not None:
            for old in checkpoints(output_dir)[: -max(1, state.run.train.keep_checkpoints)]:
                _remove(old)
    except OSError as failure:
        error = failure
    told = None
    if error is not None:
        free = f"{shutil.disk_usage(output_dir).free / 2**30:.1f} GiB are free"
        advice = "make room, or set train.keep_checkpoints, and start again"
        told = f"cannot write {folder}: {error}. {what_is_left(output_dir)}; {free}: {advice}"
    _raise_on_all(told)
    return folder


def _write(state: RunState, folder: Path | None) -> OSError | None:
    """Write the files of a checkpoint, where there is a folder; the first error ends that, but not the gathering."""
    failed = None

    def attempt(write: Callable[[Any, Path], None], what: Any, name: str) -> None:
        nonlocal failed
        if folder is not None and failed is None:
            try:
                write(what, folder / name)
            except OSError as error:
                failed = error

    attempt(write_config, state.run, "config.yaml")
    attempt(_write_json, _describe(state), "state.json")
    for name, tensors in _weights(state):
        attempt(_write_tensors, gather(tensors, keep=folder is not None), f"{name}.safetensors")
    attempt(_write_pickled, gather(_optimizers(state), keep=folder is not None), "optimizers.pt")
    return failed


def _raise_on_all(told: str | None) -> None:
    """OSError with what the main process has to tell, if anything, on every process."""
    box = [told]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(box, src=0)
    if box[0] is not None:
        raise OSError(box[0])


def what_is_left(output_dir: Path) -> str:
    """From where a run that failed goes on when it is started again."""
    last = latest(output_dir)
    return f"{last} is whole, and the run goes on from there" if last is not None else "There is no earlier checkpoint"


def load(state: RunState, folder: Path) -> list[str]:
    """Restore a run from a checkpoint folder, exactly; on every process.

    Settings are the present configuration's throughout, so that a changed one takes effect; returns a line about each
    that differs from the checkpoint's. ValueError if the checkpoint does not fit the model or the order of the clips.
    """
    saved = _read_json(folder)
    if saved["task"] != state.task.name:
        raise ValueError(f"{folder} is of a {saved['task']} run, this is {state.task.name}: change train.output_dir")
    try:
        _load_model(state.task, folder / "model.safetensors")
        for trained in state.task.trained.values():
            if own := _own_state(trained, state.task):
                _copy(load_file(str(folder / f"{trained.name}.safetensors")), own)
        # What is only sliced is not read into the memory of each process.
        mapped = sharded(state.task.model)
        optimizers = torch.load(folder / "optimizers.pt", map_location="cpu", weights_only=True, mmap=mapped)
        for name, trained in state.task.trained.items():
            _restore_optimizer(trained, **optimizers["modules"][name])
    except (RuntimeError, KeyError, SafetensorError) as error:
        raise ValueError(f"{folder} does not fit this run: {error}") from error
    shadow = load_file(str(folder / "ema.safetensors"))
    state.ema.load_state_dict({"cap": state.ema.cap, "calls": saved["ema_calls"], "shadow": shadow})
    state.task.load_extra_state(optimizers["extra"])
    state.sampler.load_state_dict(saved["sampler"])
    if state.scaler is not None and saved["scaler"] is not None:
        state.scaler.load_state_dict(saved["scaler"])
    state.step, state.tracker_id = saved["step"], saved["tracker_id"]
    state.skipped, state.skipped_in_a_row = saved.get("skipped", [0, 0])
    return _changed_settings(state.run, folder)


def checkpoints(output_dir: Path) -> list[Path]:
    """The whole checkpoint folders of a run, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted((path for path in found if (path / "state.json").is_file()), key=_step)


def latest(output_dir: Path) -> Path | None:
    """The checkpoint folder with the highest step, if there is one."""
    return max(checkpoints(output_dir), key=_step, default=None)


def find_resume(output_dir: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from. ValueError if a new run is asked for in a folder that is in use."""
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"train.output_dir {output_dir} is a file; name a folder")
    if resume:
        return latest(output_dir)
    if output_dir.is_dir() and any(output_dir.iterdir()):
        raise ValueError(
            f"train.output_dir {output_dir} is not empty and train.resume=false: "
            "choose another folder, delete this one, or continue its run with train.resume=true"
        )
    return None


def clean(output_dir: Path) -> None:
    """Delete what interrupted writers left behind. On one process."""
    for left in [*output_dir.glob(f".*{_PARTIAL}*"), *output_dir.glob(f"samples/.*{_PARTIAL}*")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def write_config(run: RunConfig, path: Path) -> None:
    """The resolved configuration as YAML that `load_config` reads."""
    with write_aside(path) as aside:
        aside.write_text(OmegaConf.to_yaml(OmegaConf.create(to_dict(run))))


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its name, and its place, when the block ends without an error.

    By then its files are on the disk, not only on their way there: a machine that loses power has the old or the new.
    """
    aside = folder.with_name(f".{folder.name}{_PARTIAL}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for path in [*aside.rglob("*"), aside]:
            _settle(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # on a full disk, the room is needed
        raise
    if folder.exists():
        _remove(folder)
    os.replace(aside, folder)
    _settle(folder.parent)


def _settle(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    """Delete a folder so that no part of it is ever seen under its name."""
    doomed = folder.with_name(f".{folder.name}.old{_PARTIAL}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed)


def _step(folder: Path) -> int:
    return int(_NAME.fullmatch(folder.name)[1])


def _describe(state: RunState) -> dict[str, Any]:
    return {
        "format": FORMAT_VERSION,
        "task": state.task.name,
        "step": state.step,
        "world_size": state.world_size,
        "sampler": state.sampler.state_dict(),
        "ema_calls": state.ema.calls,
        "scaler": state.scaler.state_dict() if state.scaler is not None else None,
        "skipped": [state.skipped, state.skipped_in_a_row],
        "tracker_id": state.tracker_id,
    }


def _weights(state: RunState) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Live tensors of each file of weights."""
    yield "model", state.task.model.state_dict()
    yield "ema", state.ema.shadow
    for trained in state.task.trained.values():
        if own := _own_state(trained, state.task):
            yield trained.name, own


def _optimizers(state: RunState) -> dict[str, Any]:
    modules = {
        name: {"optimizer": trained.optimizer.state_dict(), "scheduler": trained.scheduler.state_dict()}
        for name, trained in state.task.trained.items()
    }
    return {"modules": modules, "extra": state.task.extra_state()}


def _load_model(task: Task, path: Path) -> None:
    own = task.model.state_dict()
    tensors = load_file(str(path))
    task.model.load_state_dict(
        {name: scatter(value, own[name]) if name in own else value for name, value in tensors.items()}
    )


def _own_state(trained: TrainedModule, task: Task) -> dict[str, Tensor]:
    """Live tensors of the trained module that are not the model's."""
    shared = {id(value) for value in task.model.state_dict(keep_vars=True).values()}
    state = trained.bare.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if id(value) not in shared}


def _write_json(values: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def _write_pickled(values: dict[str, Any], path: Path) -> None:
    try:
        torch.save(values, path)
    except RuntimeError as error:  # what its writer makes of a full disk
        raise OSError(str(error).splitlines()[0]) from error


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    # safetensors' own save_file would make files that only their owner can read
    path.write_bytes(to_bytes({name: value.detach().cpu().contiguous() for name, value in tensors.items()}))


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    if source.keys() != target.keys():
        raise KeyError(f"tensors {sorted(source.keys() ^ target.keys())[:3]} are on one side only")
    for name, value in source.items():
        target[name].copy_(scatter(value, target[name]))


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / "state.json"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; train.output_dir must be a folder that all machines of the run share")
    saved = json.loads(path.read_text())
    if saved.get("format") != FORMAT_VERSION:
        raise ValueError(f"{folder} has checkpoint format {saved.get('format')}, this version reads {FORMAT_VERSION}")
    return saved


def _restore_optimizer(trained: TrainedModule, optimizer: dict[str, Any], scheduler: dict[str, Any]) -> None:
    """Moments and counts from the checkpoint; rates, betas and the like as it was built."""
    groups, base_lrs = trained.optimizer.param_groups, trained.scheduler.base_lrs
    settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    moments = scatter_moments(optimizer["state"], trained.parameters)
    # With the present settings, by which the optimizer decides where its counts of steps are kept.
    present = [group | own for group, own in zip(optimizer["param_groups"], settings, strict=True)]
    trained.optimizer.load_state_dict({"state": moments, "param_groups": present})
    trained.scheduler.load_state_dict({**scheduler, "base_lrs": base_lrs})
    count, factors = trained.scheduler.last_epoch, trained.scheduler.lr_lambdas
    for group, own, base, factor in zip(trained.optimizer.param_groups, settings, base_lrs, factors, strict=True):
        group.update(own, lr=base * factor(count))


def _changed_settings(run: RunConfig, folder: Path) -> list[str]:
    old = _flatten(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))
    new = _flatten(to_dict(run))
    changed = sorted(key for key in old.keys() & new.keys() if old[key] != new[key])
    return [f"{key} was {old[key]} and is {new[key]}" for key in changed]


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat
