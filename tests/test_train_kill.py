"""A run that is killed, at any moment, or asked to stop, goes on as if nothing had happened."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from accelerate.state import AcceleratorState
from forks import fork_server
from stages import ROOT, command, log_lines
from test_train_loop import assert_equal, assert_same_weights, results
from toy_task import ToyTask, toy_run

from sweettok import store
from sweettok.cli.main import STOPPED
from sweettok.data.dataset import GlobalBatchSampler, LoaderError
from sweettok.train import checkpoint
from sweettok.train.checkpoint import RunState, checkpoints, latest
from sweettok.train.ema import EMA
from sweettok.train.loop import fit

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

KILLS, SAVE_EVERY = 12, 4
EVENTS = 24  # steps and flushes of files, of two checkpoints, after one of which a run is killed


class Signal:
    """Sends a signal at a step to this process, and with `children` to its data workers as well."""

    def __init__(self, step, number=signal.SIGTERM, rank=None, children=False):
        self.step, self.number, self.rank, self.children = step, number, rank, children

    def __call__(self, context, loss):
        if context.step == self.step and self.rank in (None, int(os.environ.get("RANK", 0))):
            for child in multiprocessing.active_children() if self.children else ():
                os.kill(child.pid, self.number)
            os.kill(os.getpid(), self.number)
        return loss


def assert_same_checkpoint(one, other):
    assert_same_weights(one, other, 0)
    states = [torch.load(folder / "optimizers.pt", weights_only=True) for folder in (one, other)]
    assert_equal(*states)
    texts = [json.loads((folder / "state.json").read_text()) for folder in (one, other)]
    assert texts[0] == texts[1]


# ------------------------------------------------------------------------------------------------------ killed


def test_kills_at_any_step_and_write(tmp_path):
    """In a process of its own, which does not wait for imports when it starts a run anew."""
    process = multiprocessing.get_context(fork_server()).Process(target=drive, args=(tmp_path,))
    process.start()
    process.join(300)
    assert process.exitcode == 0, (tmp_path / "out.txt").read_text()[-3000:]
    kills, torn, last = map(int, (tmp_path / "found.txt").read_text().split())
    assert kills == KILLS and torn > 0  # some of them while it was saving

    folder, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    assert_same_checkpoint(folder / f"checkpoint-{last}", unbroken / f"checkpoint-{last}")
    lines = log_lines(folder)
    assert [line["step"] for line in lines] == list(range(1, last + 1))
    expected = {line["step"]: line for line in log_lines(unbroken)}
    assert [results(line) for line in lines] == [results(expected[line["step"]]) for line in lines]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert len(checkpoints(folder)) == 2


def drive(folder: Path) -> None:
    """Kill a run again and again, look at what it left each time; then end it after a known step, and one unbroken."""
    torch.set_num_threads(1)
    out = os.open(folder / "out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1), os.dup2(out, 2)
    rng, killed, torn = random.Random(0), folder / "killed", 0
    for _ in range(KILLS):
        before = latest_step(killed)
        kill(rng, start_run(killed))
        after = latest_step(killed)
        assert after >= before, "a checkpoint is gone"
        for path in checkpoints(killed):
            checkpoint.load(toy_state(killed), path)
        torn += any(killed.glob(".*.partial*"))
        logged = [step for step in map(step_of, log_text(killed)) if step is not None]
        assert max(logged, default=0) <= after + SAVE_EVERY, "steps before the last checkpoint are lost"
    last = latest_step(killed) + 3
    for path in (killed, folder / "unbroken"):
        pid, reader = start_run(path, Signal(last - 1))
        with open(reader, "rb") as events:
            events.read()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == STOPPED
    (folder / "found.txt").write_text(f"{KILLS} {torn} {last}")


def start_run(folder: Path, change_loss=None) -> tuple[int, int]:
    """A process that trains, and a pipe that it writes to at each step and before each flush of a file."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader

    def tell(context, loss):
        os.write(writer, b"s")
        return change_loss(context, loss) if change_loss is not None else loss

    def flush(path):
        os.write(writer, b"f")
        store_sync(path)

    status, store_sync = 1, store.sync
    try:
        store.sync = checkpoint.sync = flush
        run = killed_run(folder)
        status = 0 if fit(ToyTask(run, change_loss=tell), run) else STOPPED
    finally:
        os._exit(status)


def kill(rng: random.Random, run: tuple[int, int]) -> None:
    """After a random number of its events."""
    pid, reader = run
    for _ in range(rng.randrange(EVENTS)):
        os.read(reader, 1)
    os.kill(pid, signal.SIGKILL)
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, "the run ended by itself"


def killed_run(folder: Path):
    return toy_run(folder, max_steps=10**6, save_every=SAVE_EVERY, eval_every=0, keep_checkpoints=2)


def toy_state(folder: Path) -> RunState:
    run = killed_run(folder)
    task = ToyTask(run)
    sampler = GlobalBatchSampler(len(task.train_dataset), 4, rank=0, world_size=1, micro_batch=4, seed=run.train.seed)
    return RunState(run, task, EMA(task.model), sampler)


def latest_step(folder: Path) -> int:
    found = latest(folder)
    return int(found.name.partition("-")[2]) if found is not None else 0


def log_text(folder: Path) -> list[str]:
    path = folder / "log.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def step_of(line: str) -> int | None:
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return None


# ------------------------------------------------------------------------------------------------------------ hanging


def hangs_for_ever(context, loss):
    if context.step == 1:
        time.sleep(1000)
    return loss


def train_and_hang(folder: Path) -> None:
    out = os.open(folder / "out.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1), os.dup2(out, 2)
    run = toy_run(folder / "run", step_timeout=1)
    fit(ToyTask(run, change_loss=hangs_for_ever), run)


def test_a_process_that_makes_no_step_ends_and_shows_where_it_waited(tmp_path):
    process = multiprocessing.get_context(fork_server()).Process(target=train_and_hang, args=(tmp_path,))
    process.start()
    process.join()
    text = (tmp_path / "out.txt").read_text()
    assert process.exitcode == 1, text
    lines = text.splitlines()
    assert any("in hangs_for_ever" in line for line in lines)
    assert lines[-1].startswith("error: no progress for 1 seconds (train.step_timeout)")


# -------------------------------------------------------------------------------------------------- asked to stop


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGTERM, 1)])
def test_a_signal_saves_and_stops(tmp_path, number, workers):
    """Data workers, which a cluster signals too, live on until the run has stopped."""
    unbroken, stopped = toy_run(tmp_path / "unbroken"), toy_run(tmp_path / "stopped", num_workers=workers)
    assert fit(ToyTask(unbroken), unbroken) is True
    before = signal.getsignal(number)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert fit(ToyTask(stopped, change_loss=Signal(3, number, children=True)), stopped) is False
    assert signal.getsignal(number) is before
    assert latest_step(tmp_path / "stopped") == 4 and not (tmp_path / "stopped" / "final").exists()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert fit(ToyTask(stopped), stopped) is True
    assert_same_checkpoint(tmp_path / "unbroken" / "checkpoint-6", tmp_path / "stopped" / "checkpoint-6")
    assert [line["step"] for line in log_lines(tmp_path / "stopped")] == [1, 2, 3, 4, 5, 6]


def test_a_signal_in_the_last_step_changes_nothing(tmp_path):
    run = toy_run(tmp_path)
    assert fit(ToyTask(run, change_loss=Signal(5)), run) is True
    assert (tmp_path / "final").is_dir()


def test_exit_statuses(runs, tmp_path, monkeypatch, capsys):
    config = [str(runs / "proxy.yaml"), f"train.output_dir={tmp_path / 'out'}", "train.sample_every=0"]
    monkeypatch.setattr("sweettok.cli.train.fit", lambda *_: False)
    assert command(["train", *config]) == STOPPED
    failed = OSError("the disk is full"), FloatingPointError("step 3 is not finite"), LoaderError("a process died")
    for error, code in (*((error, 1) for error in failed), (ValueError("no such clip"), 2)):
        monkeypatch.setattr("sweettok.cli.train.fit", Mock(side_effect=error))
        assert command(["train", *config]) == code
        assert capsys.readouterr().err.endswith(f"error: {error}\n")


def launching(processes):
    """The launcher's command and environment."""
    names = {"NUM_PROCESSES": str(processes), "OMP_NUM_THREADS": "1", "VIRTUAL_ENV": sys.prefix}
    return ["bash", str(ROOT / "scripts" / "launch.sh")], {**os.environ, **names, "CUDA_VISIBLE_DEVICES": ""}


def test_the_launcher_passes_signals_and_statuses_on_to_one_process(tmp_path):
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); "
    code += "print('ready', flush=True); time.sleep(99)"
    launch, environment = launching(1)
    launched = subprocess.Popen([*launch, "-c", code], env=environment, stdout=subprocess.PIPE)
    assert launched.stdout.readline() == b"ready\n"
    launched.send_signal(signal.SIGTERM)
    launched.communicate(timeout=120)
    assert launched.returncode == STOPPED == 75


def test_the_launcher_passes_signals_and_statuses_on_to_several(runs, tmp_path):
    launch, environment = launching(2)
    settings = [
        f"train.output_dir={tmp_path}",
        "train.max_steps=100000",
        "train.sample_every=0",
        "train.eval_every=0",
        "train.save_every=100000",
    ]
    launch += ["-m", "sweettok", "train", str(runs / "proxy.yaml")]
    with (tmp_path / "out.txt").open("w") as out:
        launched = subprocess.Popen([*launch, *settings], env=environment, stdout=out, stderr=out)
        while not log_text(tmp_path) and launched.poll() is None:
            time.sleep(0.1)
        launched.send_signal(signal.SIGTERM)
        status = launched.wait(timeout=120)
    reported = (tmp_path / "out.txt").read_text()
    assert status == STOPPED, reported[-2000:]
    assert latest_step(tmp_path) > 0 and "stopped by a signal: saved after step" in reported
