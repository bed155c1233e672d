"""Checkpoints are whole or not there, belong to one run, and hold nothing that could run code."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_task import ToyTask, toy_run

from sweettok.data.dataset import GlobalBatchSampler
from sweettok.stages import load_config
from sweettok.store import InUseError
from sweettok.train import checkpoint
from sweettok.train.checkpoint import RunState, checkpoints, find_resume, latest, load, repair, save, write_folder_aside
from sweettok.train.ema import EMA
from sweettok.train.loop import fit

TESTS = Path(__file__).parent


def state_of(run, step=0):
    """A run that has trained for `step` steps on made-up gradients."""
    task = ToyTask(run)
    ema = EMA(task.model, run.train.ema_decay)
    sampler = GlobalBatchSampler(
        num_items=len(task.train_dataset),
        global_batch=run.train.global_batch_size,
        rank=0,
        world_size=1,
        micro_batch=2,
        seed=run.train.seed,
    )
    state = RunState(run, task, ema, sampler)
    for _ in range(step):
        for trained in task.trained.values():
            for param in trained.parameters:
                param.grad = torch.randn_like(param)
            trained.optimizer.step()
            trained.scheduler.step()
        ema.update(task.model)
        sampler.advance()
    state.step, task.calls = step, step
    state.skipped, state.skipped_in_a_row = 5 * step, step
    return state


def tensors(state):
    modules = {name: trained.module for name, trained in state.task.trained.items()}
    live = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    return live | {f"ema.{key}": value for key, value in state.ema.shadow.items()}


def test_load_restores_everything(tmp_path):
    old = state_of(toy_run(tmp_path), step=3)
    old.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    old.scaler.scale(torch.ones(()))
    folder = save(old, tmp_path)
    new = state_of(toy_run(tmp_path))
    new.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    load(new, folder)
    first, second = tensors(old), tensors(new)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert (new.step, new.sampler.global_batches, new.task.calls, new.ema.calls) == (3, 3, 3, 3)
    assert (new.skipped, new.skipped_in_a_row) == (15, 3)
    assert new.scaler.get_scale() == 8.0
    for name, trained in new.task.trained.items():
        assert trained.scheduler.state_dict() == old.task.trained[name].scheduler.state_dict()
        ours, theirs = trained.optimizer.state_dict(), old.task.trained[name].optimizer.state_dict()
        assert ours["param_groups"] == theirs["param_groups"]
        for index, moments in theirs["state"].items():
            for key, value in moments.items():
                assert value is None or torch.equal(ours["state"][index][key], value)


def test_folder_describes_itself_and_holds_no_code(tmp_path):
    run = toy_run(tmp_path)
    folder = save(state_of(run, step=2), tmp_path)
    assert folder.name == "checkpoint-2"
    files = ["config.yaml", "discriminator.safetensors", "ema.safetensors", "model.safetensors", "optimizers.pt"]
    assert sorted(path.name for path in folder.iterdir()) == [*files, "state.json"]
    assert load_config(folder / "config.yaml") == run
    saved = json.loads((folder / "state.json").read_text())
    assert (saved["format"], saved["task"], saved["step"]) == (3, "toy", 2)
    assert (saved["sampler"]["global_batches"], saved["sampler"]["seed"]) == (2, 42)
    assert set(load_file(folder / "model.safetensors")) == set(load_file(folder / "ema.safetensors"))
    torch.load(folder / "optimizers.pt", weights_only=True)


@pytest.mark.parametrize("writer", ["write_config", "_write_tensors", "_write_pickled"])
def test_interrupted_save_leaves_the_previous_one(tmp_path, monkeypatch, writer):
    save(state_of(toy_run(tmp_path), step=1), tmp_path)

    def kill(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, writer, kill)
        with pytest.raises(KeyboardInterrupt):
            save(state_of(toy_run(tmp_path), step=2), tmp_path)
    assert latest(tmp_path) == tmp_path / "checkpoint-1"
    load(state_of(toy_run(tmp_path)), tmp_path / "checkpoint-1")
    repair(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    save(state_of(toy_run(tmp_path), step=2), tmp_path)
    assert latest(tmp_path) == tmp_path / "checkpoint-2"


def full_disk(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("writer", ["write_config", "_describe", "_write_tensors", "_write_pickled", "os.fsync"])
def test_a_full_disk_is_reported_and_leaves_the_previous_one(tmp_path, monkeypatch, writer):
    run = toy_run(tmp_path, keep_checkpoints=1)
    save(state_of(run, step=1), tmp_path)
    files = {path: path.read_bytes() for path in (tmp_path / "checkpoint-1").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(f"sweettok.train.checkpoint.{writer}", full_disk)
        reported = "cannot write .*checkpoint-2: .*No space left.*checkpoint-1 is complete; start again to resume.*GiB"
        with pytest.raises(OSError, match=reported):
            save(state_of(run, step=2), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert files == {path: path.read_bytes() for path in files}
    save(state_of(run, step=2), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_run_on_a_disk_with_a_limit(tmp_path):
    """The system itself refuses what is larger than a limit, which the optimizers' file is."""
    limit = max(path.stat().st_size for path in save(state_of(toy_run(tmp_path), step=1), tmp_path).iterdir()) - 1
    code = (
        "import resource, sys; from pathlib import Path; from test_checkpoint import *\n"
        f"folder = Path({str(tmp_path)!r}); state = state_of(toy_run(folder), step=2)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "try: save(state, folder)\n"
        "except OSError as error: sys.exit(str(error))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS)))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "checkpoint-1 is complete" in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    load(state_of(toy_run(tmp_path)), tmp_path / "checkpoint-1")


def test_a_disk_that_is_full_elsewhere(tmp_path, monkeypatch, fresh_accelerator):
    """Errors of the system, as when a sample is written, tell from where the run goes on too."""
    run = toy_run(tmp_path, sample_every=5)
    monkeypatch.setattr("sweettok.train.evaluate.write_video", full_disk)
    with pytest.raises(OSError, match="No space left.*checkpoint-3 is complete; start again to resume from it$"):
        fit(ToyTask(run), run)


def test_files_are_on_the_disk_before_they_count(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace
    by_handle = lambda handle: Path(os.readlink(f"/proc/self/fd/{handle}")).name  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda handle: events.append(by_handle(handle)) or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda old, new: events.append(("renamed", Path(new).name)) or replace(old, new))
    folder = save(state_of(toy_run(tmp_path), step=1), tmp_path)
    *flushed, aside, renamed, parent = events
    written = {path.name for path in folder.iterdir()} - {"config.yaml"}  # which is itself flushed under another name
    assert written <= set(flushed) and ("renamed", "config.yaml") in flushed
    assert aside.startswith(".checkpoint-1.") and (renamed, parent) == (("renamed", "checkpoint-1"), tmp_path.name)


def test_what_kills_leave_behind_is_removed(tmp_path):
    (tmp_path / ".checkpoint-3.0a1b.partial").mkdir()
    (tmp_path / "samples").mkdir()
    for name in (".log.12.partial.jsonl", "samples/.00000003_0.12.partial.mp4"):
        (tmp_path / name).touch()
    for name in ("log.jsonl", "samples/00000003_0.mp4"):
        (tmp_path / name).touch()
    repair(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["00000003_0.mp4", "log.jsonl", "samples"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("rename", [1, 2])
def test_a_kill_at_each_rename_leaves_the_old_folder_or_the_new(tmp_path, monkeypatch, rename, after):
    folder, replace, calls = tmp_path / "best", os.replace, []
    with write_folder_aside(folder) as aside:
        (aside / "version").write_text("old")

    def killed(source, target):
        calls.append(target)
        if len(calls) == rename and not after:
            raise KeyboardInterrupt
        replace(source, target)
        if len(calls) == rename and after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt), write_folder_aside(folder) as aside:
            (aside / "version").write_text("new")
    assert len(calls) == rename
    assert find_resume(tmp_path, resume=True) is None
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (folder / "version").read_text() == ("new" if (rename, after) == (2, True) else "old")


def test_latest_is_the_highest_whole_one(tmp_path):
    assert latest(tmp_path / "nowhere") is None
    for step in (9, 10):
        save(state_of(toy_run(tmp_path), step=step), tmp_path)
    (tmp_path / "checkpoint-11").mkdir()
    (tmp_path / ".checkpoint-12.partial").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert latest(tmp_path) == tmp_path / "checkpoint-10"


def test_rotation_keeps_the_newest(tmp_path):
    for step in (1, 2, 3):
        save(state_of(toy_run(tmp_path, keep_checkpoints=2), step=step), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert checkpoints(tmp_path) == [tmp_path / "checkpoint-2", tmp_path / "checkpoint-3"]


def test_write_folder_aside_replaces_only_when_done(tmp_path):
    folder = tmp_path / "final"
    with write_folder_aside(folder) as aside:
        (aside / "old").touch()
        assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), write_folder_aside(folder):
        raise KeyboardInterrupt
    assert (folder / "old").exists()
    with write_folder_aside(folder) as aside:
        (aside / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["new"] and [path.name for path in tmp_path.iterdir()] == [
        "final"
    ]


@pytest.mark.parametrize(
    ("change", "reported"),
    [({"seed": 1}, "seed was 42 and is 1"), ({"global_batch_size": 8}, "batch was 4 and is 8")],
)
def test_another_order_of_clips_is_refused(tmp_path, change, reported):
    folder = save(state_of(toy_run(tmp_path), step=1), tmp_path)
    with pytest.raises(ValueError, match=reported):
        load(state_of(toy_run(tmp_path, **change)), folder)


def test_changed_settings_take_effect_and_are_reported(tmp_path):
    old = state_of(toy_run(tmp_path), step=3)
    folder = save(old, tmp_path)
    run = toy_run(tmp_path, max_steps=30, ema_decay=0.5)
    new = state_of(run)
    trained = new.task.trained["discriminator"]
    (group,) = trained.optimizer.param_groups
    group["weight_decay"], trained.scheduler.base_lrs = 0.25, [0.4]
    assert load(new, folder)[0] == ["train.ema_decay was 0.999 and is 0.5", "train.max_steps was 6 and is 30"]
    (group,) = trained.optimizer.param_groups
    assert (group["weight_decay"], group["lr"], new.ema.cap) == (0.25, 0.4 * (1 - 3 / 30), 0.5)
    assert trained.scheduler.last_epoch == 3
    for theirs, ours in zip(trained.parameters, old.task.trained["discriminator"].parameters, strict=True):
        moments = (trained.optimizer.state[theirs], old.task.trained["discriminator"].optimizer.state[ours])
        assert torch.equal(*(state["exp_avg"] for state in moments))
    trained.scheduler.step()
    assert group["lr"] == 0.4 * (1 - 4 / 30)
    assert load(state_of(toy_run(tmp_path)), folder)[0] == []


def test_foreign_checkpoints_are_refused(tmp_path):
    run = toy_run(tmp_path)
    folder = save(state_of(run, step=1), tmp_path)
    other = state_of(run)
    other.task.name = "other"
    with pytest.raises(ValueError, match="of a toy run, this is other"):
        load(other, folder)
    smaller = state_of(run)
    smaller.task.model.layers[2] = torch.nn.Linear(8, 3).double()
    with pytest.raises(ValueError, match="does not fit this run"):
        load(smaller, folder)
    saved = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**saved, "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        load(state_of(run), folder)
    (folder / "state.json").unlink()
    with pytest.raises(FileNotFoundError, match="all machines"):
        load(state_of(run), folder)


def test_find_resume(tmp_path):
    assert find_resume(tmp_path / "new", resume=False) is None
    assert find_resume(tmp_path, resume=False) is None
    folder = save(state_of(toy_run(tmp_path), step=1), tmp_path)
    assert find_resume(tmp_path, resume=True) == folder
    with pytest.raises(ValueError, match="train.resume=true"):
        find_resume(tmp_path, resume=False)
    with pytest.raises(ValueError, match="is a file"):
        find_resume(folder / "state.json", resume=True)


def test_a_model_without_its_checkpoints_is_not_replaced(tmp_path):
    (tmp_path / "final").mkdir()
    with pytest.raises(ValueError, match="would replace the model in"):
        fit(ToyTask(toy_run(tmp_path)), toy_run(tmp_path))
    assert (tmp_path / "final").is_dir()


def test_one_run_at_a_time_writes_into_a_folder(tmp_path, monkeypatch):
    run = toy_run(tmp_path)
    monkeypatch.setattr(checkpoint, "WAIT", 0)
    release = checkpoint.claim(run)
    with pytest.raises(InUseError, match="another process holds run.lock"):
        fit(ToyTask(run), run)
    release()
    checkpoint.claim(run)()


def test_a_run_writes_into_no_model(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="the folder of a saved model"):
        checkpoint.claim(toy_run(tmp_path / "run"))
    (tmp_path / "config.json").unlink()
    checkpoint.claim(toy_run(tmp_path / "run"))()
