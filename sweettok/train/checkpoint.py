"""Checkpoint folders, from which a run is resumed exactly, with any number of processes.

`<output_dir>/checkpoint-<step>/` contains
  config.yaml              the resolved configuration
  state.json               format version, task, step, state of the sampler, of the moving average's decay, of skipped
                           steps and of the loss scaler
  model.safetensors        the task's model
  ema.safetensors          its moving average, with buffers
  <name>.safetensors       tensors of a trained module that are not in the model, such as a discriminator
  optimizers.pt            optimizers and schedules of all trained modules, and the task's extra state
Random numbers need no state: they are functions of (seed, step).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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

from sweettok.config import flatten, to_dict
from sweettok.data.dataset import GlobalBatchSampler
from sweettok.distributed import from_main, gather_objects, together
from sweettok.store import check_output_folder, sync, take_lock, write_aside
from sweettok.train.config import RunConfig
from sweettok.train.ema import EMA
from sweettok.train.sharding import gather, is_sharded, like
from sweettok.train.task import Task, TrainedModule

FORMAT_VERSION = 3
LOCK, WAIT = "run.lock", 10  # seconds: the worker processes of a killed run live on for some
_DATA = ("train", "validation", "root")
_PARTIAL, _OLD = ".partial", ".old.partial"


@dataclass
class RunState:
    """The objects of a run that a checkpoint saves and restores."""

    run: RunConfig
    task: Task
    ema: EMA
    sampler: GlobalBatchSampler
    scaler: GradScaler | None = None
    step: int = 0
    skipped: int = 0  # steps that were not finite
    skipped_in_a_row: int = 0  # those since the last finite step


def checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoint folders of a run, oldest first."""
    folders = [path.parent for path in output_dir.glob("checkpoint-*/state.json")]
    steps = {folder: folder.name.partition("-")[2] for folder in folders}
    return sorted((folder for folder in folders if steps[folder].isdecimal()), key=lambda folder: int(steps[folder]))


def latest(output_dir: Path) -> Path | None:
    """The checkpoint folder with the highest step, if there is one."""
    return next(reversed(checkpoints(output_dir)), None)


def describe_latest(output_dir: Path) -> str:
    """A sentence for error messages: from where the run can be resumed."""
    last = latest(output_dir)
    return f"{last} is complete; start again to resume from it" if last is not None else "There is no checkpoint yet"


def claim(run: RunConfig) -> Callable[[], None]:
    """Take the lock of a run's output folder; returns the function that releases it. On one process.

    Raises ValueError if the folder is an input, in a model's folder or cannot be written to, InUseError while another
    run has it.
    """
    output_dir = Path(run.train.output_dir)
    if output_dir.is_file():
        raise ValueError(f"train.output_dir {output_dir} is a file; name a folder")
    names = ("proxy", "prior", "tokenizer", "init", "images")
    inputs = [*(getattr(run, name, None) for name in names), *(getattr(run.data, name, None) for name in _DATA)]
    check_output_folder(output_dir, [path for path in inputs if isinstance(path, str)])
    return take_lock(output_dir / LOCK, WAIT)


def find_resume(output_dir: Path, resume: bool) -> Path | None:
    """Repair the output folder, and return the checkpoint to resume from. To be called on one process.

    Raises ValueError if `resume` is false and the folder is not empty.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"train.output_dir {output_dir} is a file; name a folder")
    if not resume and output_dir.is_dir() and any(path.name != LOCK for path in output_dir.iterdir()):
        raise ValueError(
            f"train.output_dir {output_dir} is not empty and train.resume=false: "
            "choose another folder, delete this one, or resume its run with train.resume=true"
        )
    repair(output_dir)
    found = latest(output_dir)
    if found is None and (output_dir / "final").exists():
        raise ValueError(
            f"train.output_dir {output_dir} has no checkpoint to resume from, and training would replace the model in "
            f"{output_dir / 'final'}: choose another folder, or move that model away"
        )
    return found


def repair(output_dir: Path) -> None:
    """Clean up after a kill: restore a folder that was moved away, and delete incomplete files and folders."""
    for old in output_dir.glob(f".*{_OLD}"):
        folder = old.with_name(old.name.removeprefix(".").removesuffix(_OLD))
        if not folder.exists():
            os.replace(old, folder)
    for left in [*output_dir.glob(f".*{_PARTIAL}*"), *output_dir.glob(f"samples/.*{_PARTIAL}*")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextmanager
def write_folder_aside(folder: Path) -> Iterator[Path]:
    """Yield a new folder that replaces `folder` when the block succeeds, after its files are flushed to the disk.

    After a kill at any moment, `repair` restores the old folder or the new one, never a mixture.
    """
    aside, old = (folder.with_name(f".{folder.name}{end}") for end in (f".{secrets.token_hex(8)}{_PARTIAL}", _OLD))
    aside.mkdir(parents=True)
    try:
        yield aside
        for path in [*aside.rglob("*"), aside]:
            sync(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # frees space on a full disk
        raise
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(aside, folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Delete a folder in such a way that it is never incomplete under its name."""
    doomed = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}{_PARTIAL}")
    os.replace(folder, doomed)
    shutil.rmtree(doomed)


def save(state: RunState, output_dir: Path) -> Path:
    """Write `checkpoint-<step>` and remove the oldest checkpoints beyond `keep_checkpoints`.

    Every process must call it; the main one writes, and gathers sharded tensors in its memory.
    Raises OSError on every process if the checkpoint cannot be written, for example because the disk is full.
    """
    folder, keep = output_dir / f"checkpoint-{state.step}", state.run.train.keep_checkpoints
    weights, optimizers = gather(_weights(state)), gather(_optimizers(state))

    def write() -> None:
        try:
            with write_folder_aside(folder) as aside:
                write_config(state.run, aside / "config.yaml")
                (aside / "state.json").write_text(json.dumps(_describe(state), indent=2) + "\n")
                for name, tensors in weights.items():
                    _write_tensors(tensors, aside / f"{name}.safetensors")
                _write_pickled(optimizers, aside / "optimizers.pt")
            for old in checkpoints(output_dir)[:-keep] if keep is not None else ():
                _remove(old)
        except OSError as error:
            free = f"{shutil.disk_usage(output_dir).free / 2**30:.1f} GiB are free"
            advice = "free space, or set train.keep_checkpoints, and start again"
            raise OSError(f"cannot write {folder}: {error}. {describe_latest(output_dir)}; {free}: {advice}") from error

    from_main(write)
    return folder


def write_config(run: RunConfig, path: Path) -> None:
    """The resolved configuration as YAML that `load_config` reads."""
    with write_aside(path) as aside:
        aside.write_text(OmegaConf.to_yaml(OmegaConf.create(to_dict(run))))


def _describe(state: RunState) -> dict[str, Any]:
    return {
        "format": FORMAT_VERSION,
        "task": state.task.name,
        "step": state.step,
        "sampler": state.sampler.state_dict(),
        "ema_calls": state.ema.calls,
        "scaler": state.scaler.state_dict() if state.scaler is not None else None,
        "skipped": [state.skipped, state.skipped_in_a_row],
    }


def _weights(state: RunState) -> dict[str, Mapping[str, Tensor]]:
    """Live tensors of each file of weights."""
    own = {name: _own_tensors(trained, state.task) for name, trained in state.task.trained.items()}
    files = {"model": state.task.model.state_dict(), "ema": state.ema.shadow}
    return files | {name: tensors for name, tensors in own.items() if tensors}


def _optimizers(state: RunState) -> dict[str, Any]:
    modules = {
        name: {"optimizer": trained.optimizer.state_dict(), "scheduler": trained.scheduler.state_dict()}
        for name, trained in state.task.trained.items()
    }
    return {"modules": modules, "extra": state.task.extra_state()}


def _own_tensors(trained: TrainedModule, task: Task) -> dict[str, Tensor]:
    """Live tensors of a trained module that are not the model's."""
    of_model = {id(value) for value in task.model.state_dict(keep_vars=True).values()}
    tensors = trained.bare.state_dict(keep_vars=True)
    return {name: value for name, value in tensors.items() if id(value) not in of_model}


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    # safetensors' save_file would create files that only their owner can read.
    path.write_bytes(to_bytes({name: value.detach().cpu().contiguous() for name, value in tensors.items()}))


def _write_pickled(values: dict[str, Any], path: Path) -> None:
    try:
        torch.save(values, path)
    except RuntimeError as error:  # raised by torch.save on a full disk
        raise OSError(str(error).splitlines()[0]) from error


def resume(state: RunState, folder: Path) -> list[str]:
    """Call `load` on every process; returns the changed settings. ValueError if the processes read different files."""
    changed, checksum = together(lambda: load(state, folder))
    found = gather_objects((state.step, checksum))
    if len(set(found)) > 1:
        read = "; ".join(f"process {rank}: step {step}, weights {crc:08x}" for rank, (step, crc) in enumerate(found))
        raise ValueError(
            f"the processes read different checkpoints from {folder} ({read}): train.output_dir must be a folder that "
            "all machines of the run share"
        )
    return changed


def load(state: RunState, folder: Path) -> tuple[list[str], int]:
    """Restore a run from a checkpoint folder, exactly, except for settings that were changed since.

    Returns:
        A line for each setting that differs from the checkpoint's, and a checksum of the weights.

    Raises:
        ValueError: the checkpoint does not fit the model, the task or the order of the clips.
    """
    saved, task = _read_json(folder), state.task
    if saved["task"] != task.name:
        raise ValueError(f"{folder} is of a {saved['task']} run, this is {task.name}: change train.output_dir")
    try:
        files = {name: load_file(str(folder / f"{name}.safetensors")) for name in _weights(state)}
        own = task.model.state_dict()
        model = {name: like(own.get(name), value) for name, value in files["model"].items()}
        task.model.load_state_dict(model)
        for name, trained in task.trained.items():
            _copy(files.get(name, {}), _own_tensors(trained, task))
        # mmap: the processes of a sharded run keep slices only, and do not have to read the whole file.
        mapped = is_sharded(task.model)
        optimizers = torch.load(folder / "optimizers.pt", map_location="cpu", weights_only=True, mmap=mapped)
        for name, trained in task.trained.items():
            _restore_optimizer(trained, **optimizers["modules"][name])
    except (RuntimeError, KeyError, SafetensorError) as error:
        raise ValueError(f"{folder} does not fit this run: {error}") from error
    state.ema.restore(saved["ema_calls"], files["ema"])
    task.load_extra_state(optimizers["extra"])
    state.sampler.load_state_dict(saved["sampler"])
    if state.scaler is not None and saved["scaler"] is not None:
        state.scaler.load_state_dict(saved["scaler"])
    state.step = saved["step"]
    state.skipped, state.skipped_in_a_row = saved["skipped"]
    return _changed_settings(state.run, folder), _checksum(files)


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / "state.json"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; train.output_dir must be a folder that all machines of the run share")
    saved = json.loads(path.read_text())
    if saved.get("format") != FORMAT_VERSION:
        raise ValueError(f"{folder} has checkpoint format {saved.get('format')}, this version reads {FORMAT_VERSION}")
    return saved


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    if source.keys() != target.keys():
        raise KeyError(f"tensors {sorted(source.keys() ^ target.keys())[:3]} are in only one of them")
    for name, value in source.items():
        target[name].copy_(like(target[name], value))


def _restore_optimizer(trained: TrainedModule, optimizer: dict[str, Any], scheduler: dict[str, Any]) -> None:
    """Load moments and counts; keep the present settings, such as learning rates and betas."""
    groups, base_lrs = trained.optimizer.param_groups, trained.scheduler.base_lrs
    settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    parameters, state = trained.parameters, optimizer["state"].items()
    moments = {index: {key: like(parameters[index], value) for key, value in entry.items()} for index, entry in state}
    # With the present settings, which determine the device of the optimizer's step counts.
    present = [group | own for group, own in zip(optimizer["param_groups"], settings, strict=True)]
    trained.optimizer.load_state_dict({"state": moments, "param_groups": present})
    trained.scheduler.load_state_dict({**scheduler, "base_lrs": base_lrs})
    count, factors = trained.scheduler.last_epoch, trained.scheduler.lr_lambdas
    for group, own, base, factor in zip(trained.optimizer.param_groups, settings, base_lrs, factors, strict=True):
        group.update(own, lr=base * factor(count))


def _checksum(files: Mapping[str, Mapping[str, Tensor]]) -> int:
    checksum = 0
    for tensors in files.values():
        for _, value in sorted(tensors.items()):
            checksum = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy(), checksum)
    return checksum


def _changed_settings(run: RunConfig, folder: Path) -> list[str]:
    old = flatten(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))
    new = flatten(to_dict(run))
    changed = sorted(key for key in old.keys() & new.keys() if old[key] != new[key])
    return [f"{key} was {old[key]} and is {new[key]}" for key in changed]
