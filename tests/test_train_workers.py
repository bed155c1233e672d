"""Data workers that die or hang end the run in one line, with nothing lost and nothing left behind."""

import multiprocessing
import os
import re
import signal
import time

import pytest
import torch
from accelerate.state import AcceleratorState
from stages import command
from test_train_loop import assert_same_weights, log_lines, results
from torch.utils.data import get_worker_info
from toy_task import ToyTask, Vectors, toy_run

from sweettok.data.backends import ClipError
from sweettok.data.dataset import ClipDataset, LoaderError, make_loader, plain_errors
from sweettok.train.loop import fit

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

HARMS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),  # as for want of memory
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "asleep": lambda: time.sleep(1000),
}
DIED = r"a process that reads clips died; if memory ran out, use fewer data.num_workers \(.*\)"
HANGS = r"a process that reads clips hangs: no batch came in 7 seconds \(data.read_timeout\)"


class Harmed(Vectors):
    """A worker gives none of its clips from this epoch on."""

    def __init__(self, count, seed, epoch, harm):
        super().__init__(count, seed)
        self.epoch, self.harm = epoch, harm

    def __getitem__(self, item):
        epoch = item[0] if isinstance(item, tuple) else 0
        if epoch >= self.epoch and get_worker_info() is not None:
            self.harm()
        return super().__getitem__(item)


def train(folder, **datasets):
    """Six steps of four clips, saved after three; a batch may take 14 times `read_timeout`."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = toy_run(folder, num_workers=1, **({"read_timeout": 0.5} if datasets else {}))
    task = ToyTask(run)
    vars(task).update(datasets)
    fit(task, run)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    train(folder)
    return folder


@pytest.mark.parametrize("harm", ["killed", "stopped"])
def test_a_run_ends_and_goes_on(unbroken, tmp_path, harm):
    """Of 11 clips, the third epoch begins in the last of six batches, which is asked for after the fourth."""
    with pytest.raises(LoaderError) as error:
        train(tmp_path, train_dataset=Harmed(11, 1, 2, HARMS[harm]))
    reported = DIED if harm == "killed" else HANGS
    left = f"{tmp_path}/checkpoint-3 is complete; start again to resume from it"
    assert re.fullmatch(rf"{reported}\. {left}", str(error.value))
    assert not multiprocessing.active_children()
    train(tmp_path)
    assert_same_weights(unbroken / "checkpoint-6", tmp_path / "checkpoint-6", 0)


def test_validation_too(unbroken, tmp_path):
    with pytest.raises(LoaderError, match=rf"{HANGS}\. {tmp_path}/checkpoint-3 is complete"):
        train(tmp_path, validation_dataset=Harmed(7, 2, 0, HARMS["asleep"]))
    train(tmp_path)
    logs = [log_lines(folder, "eval/") for folder in (unbroken, tmp_path)]
    assert [results(line) for line in logs[0]] == [results(line) for line in logs[1]]


def test_mistakes_in_a_worker_are_shown_as_they_are(tmp_path):
    def mistake():
        raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="(?s)Traceback.*in mistake.*sizes do not match") as kept:
        train(tmp_path, train_dataset=Harmed(11, 1, 0, mistake))
    assert kept.tb and not multiprocessing.active_children()  # which a program that ends would wait for


def test_workers_serve_one_round_after_the_other():
    loader = make_loader(Vectors(6, 0), [[0, 1], [2, 3], [4, 5]], 1)
    rounds = [[batch["clip"] for batch in plain_errors(loader, 60)] for _ in range(2)]
    assert len(rounds[0]) == 3 and all(map(torch.equal, *rounds))


@pytest.mark.parametrize("training", [True, False])
def test_a_clip_that_ends_the_run_is_reported_in_one_line(runs, tmp_path, monkeypatch, capsys, training):
    """One that has no substitutes, or one of validation, which has none ever."""
    decode = ClipDataset._decode

    def broken(self, path, *args):
        if self.substitute == training:
            raise ClipError(f"{path.name}: damaged")
        return decode(self, path, *args)

    monkeypatch.setattr(ClipDataset, "_decode", broken)
    settings = [f"train.output_dir={tmp_path}", "data.num_workers=1", "train.sample_every=0", "train.eval_every=1"]
    assert command(["train", str(runs / "proxy.yaml"), *settings]) == 2
    more = "; nor can 10 clips drawn in its place be read, the last of them .*: damaged" if training else ""
    assert re.fullmatch(rf"error: \w+\.mp4: damaged{more}\n", capsys.readouterr().err)
