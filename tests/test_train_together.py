"""Two processes: they give the numbers of one, and skip, stop and fail together. One launch does all their runs."""

import json
import multiprocessing
import os
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from test_checkpoint import full_disk
from test_train_health import Harm
from test_train_kill import Signal
from test_train_loop import assert_same_weights, log_lines, results
from test_train_workers import HARMS, Harmed
from toy_task import ToyTask, Vectors, errors, spawn_fit, toy_run

from sweettok.train import checkpoint
from sweettok.train.checkpoint import checkpoints
from sweettok.train.loop import fit

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

EQUAL = {"max_steps": 5, "save_every": 1, "micro_batch_size": 1, "eval_every": 5, "sample_every": 5}
SKIPPING = {"max_steps": 5, "save_every": 1, "micro_batch_size": 1}
MEETING = {"max_steps": 8, "log_every": 3, "micro_batch_size": 2, "save_every": 4, "eval_every": 0}
STOPPING = {"max_steps": 50, "log_every": 50, "save_every": 50, "eval_every": 0, "max_bad_clips": 2}


class Damaged(Vectors):
    """Every clip whose number is in `bad` has a problem, in every epoch."""

    def __init__(self, count, seed, bad):
        super().__init__(count, seed)
        self.bad = bad

    def __getitem__(self, item):
        index = item[1] if isinstance(item, tuple) else item
        problem = f"clip{index}.mp4: no frames" if index in self.bad else ""
        return {**super().__getitem__(item), "problem": problem}


class Meets:
    """Makes a task whose clips are damaged."""

    def __init__(self, *bad):
        self.bad = bad

    def __call__(self, run):
        task = ToyTask(run)
        task.train_dataset = Damaged(11, 1, self.bad)
        return task


def harmed(run):
    return ToyTask(run, change_loss=Harm([2], clips=3))


def always_harmed(run):
    return ToyTask(run, change_loss=Harm(range(9), clips=2))


def loses_a_worker(run):
    """On the second process, whose data worker dies with the third epoch."""
    multiprocessing.set_start_method("fork", force=True)  # as in a run by itself
    task = ToyTask(run)
    if os.environ["RANK"] == "1":
        task.train_dataset = Harmed(11, 1, 2, HARMS["killed"])
    return task


def second_is_signalled(run):
    return ToyTask(run, change_loss=Signal(2, rank=1))


def cannot_write(run):
    """On the main process alone, as where only its machine has the disk."""
    write = checkpoint._write_pickled
    if os.environ["RANK"] == "0":
        checkpoint._write_pickled = lambda values, path: (
            full_disk() if Path(run.train.output_dir) in path.parents else write(values, path)
        )
    return ToyTask(run)


class OnNode:
    """Makes a task on a machine of its own: `folder/node-<rank>` is where relative paths lead to."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, run):
        os.chdir(self.folder / f"node-{os.environ['RANK']}")
        return ToyTask(run)


def cannot_sample(run):
    """On the main process, which alone samples."""
    task = ToyTask(run)
    task.sample = Mock(side_effect=ValueError("no sample today"))
    return task


def cannot_export(run):
    task = ToyTask(run)
    task.export = Mock(side_effect=full_disk)
    return task


def cannot_validate(run):
    """On the second process alone."""
    task = ToyTask(run)
    if os.environ["RANK"] == "1":
        task.validate = Mock(side_effect=ValueError("clip 3 is damaged"))
    return task


def local_checkpoints(folder):
    """Checkpoints of the same step that differ between machines, and one that a single machine has."""
    for kind, nodes in (("differs", (0, 1)), ("absent", (0,))):
        for node in (0, 1):
            (folder / kind / f"node-{node}" / "run").mkdir(parents=True)
        for node in nodes:
            alone(toy_run(folder / kind / f"node-{node}" / "run", max_steps=1, save_every=1, seed=node))
            path = folder / kind / f"node-{node}" / "run" / "checkpoint-1" / "state.json"
            path.write_text(path.read_text().replace(f'"seed": {node}', '"seed": 42'))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    local_checkpoints(folder)
    node_local = toy_run(Path("run"), max_steps=2, save_every=1)
    spawn_fit(
        (toy_run(folder / "equal", **EQUAL), ToyTask),
        (toy_run(folder / "skips", **SKIPPING), harmed),
        (toy_run(folder / "ends", max_skipped_steps=1, log_every=50), always_harmed),
        (toy_run(folder / "meets", **MEETING), Meets(3, 7)),
        (toy_run(folder / "meets", **(MEETING | {"max_steps": 16})), Meets(3, 7, 9)),
        (toy_run(folder / "stops", **STOPPING), Meets(1, 4, 5, 8)),
        (toy_run(folder / "signalled", max_steps=5), second_is_signalled),
        (toy_run(folder / "full"), cannot_write),
        (toy_run(folder / "samples", sample_every=2), cannot_sample),
        (toy_run(folder / "export", max_steps=1), cannot_export),
        (toy_run(folder / "validation"), cannot_validate),
        (node_local, OnNode(folder / "differs")),
        (node_local, OnNode(folder / "absent")),
        (toy_run(folder / "lost", num_workers=1), loses_a_worker),  # the last: one process leaves the other
    )
    return folder


def alone(run, make=ToyTask):
    AcceleratorState._reset_state(reset_partial_state=True)
    return fit(make(run), run)


def test_two_processes_equal_one(two, tmp_path):
    alone(toy_run(tmp_path, **EQUAL))
    both = two / "equal"
    ones, twos = log_lines(tmp_path), log_lines(both)
    assert [results(line)["step"] for line in twos] == [1, 2, 3, 4, 5]
    for one, other in zip(ones, twos, strict=True):
        assert results(one) == pytest.approx(results(other), rel=1e-6)
        rates = [[line[key] for key in line if key.startswith("lr/")] for line in (one, other)]
        assert rates[0] == rates[1]
    # The generator's update is plain gradient descent, so the weights after one step are the gradients of that step.
    for step in range(1, 6):
        assert_same_weights(tmp_path / f"checkpoint-{step}", both / f"checkpoint-{step}", 1e-13)
    (one,), (other,) = log_lines(tmp_path, "eval/"), log_lines(both, "eval/")
    assert one["eval/error"] == pytest.approx(other["eval/error"], rel=1e-12)
    assert len(list((both / "samples").iterdir())) == 2

    # What two processes began, one can finish.
    for left in ("checkpoint-5", "checkpoint-4", "final"):
        shutil.rmtree(both / left)
    alone(toy_run(both, **EQUAL))
    assert_same_weights(tmp_path / "checkpoint-5", both / "checkpoint-5", 1e-13)
    assert [line["step"] for line in log_lines(both)] == [1, 2, 3, 4, 5]


def test_processes_skip_together(two, tmp_path):
    """One of two processes has a number that is not finite; so has the one process of another run."""
    run = toy_run(tmp_path, **SKIPPING)
    alone(run, harmed)
    for step in range(1, 6):
        assert_same_weights(tmp_path / f"checkpoint-{step}", two / "skips" / f"checkpoint-{step}", 1e-13)
    weights = [load_file(two / "skips" / f"checkpoint-{step}" / "model.safetensors") for step in (2, 3, 4)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[1][name], weights[2][name]) for name in weights[0])
    mine, others = log_lines(tmp_path), log_lines(two / "skips")
    assert [line["skipped_steps"] for line in others] == [0, 0, 1, 1, 1]
    assert others[2].pop("train/loss/generator") is None is mine[2].pop("train/loss/generator")
    for one, other in zip(mine, others, strict=True):
        known = {key for key, value in results(one).items() if value is not None}
        assert known == {key for key, value in results(other).items() if value is not None}
        assert [other[key] for key in sorted(known)] == pytest.approx([one[key] for key in sorted(known)], rel=1e-6)


def test_processes_stop_together(two, tmp_path):
    """All save after the same step when one is signalled."""
    alone(toy_run(tmp_path, max_steps=5))
    assert [path.name for path in checkpoints(two / "signalled")] == ["checkpoint-3"]
    assert alone(toy_run(two / "signalled", max_steps=5)) is True
    assert_same_weights(tmp_path / "checkpoint-5", two / "signalled" / "checkpoint-5", 1e-13)


def test_processes_end_together(two):
    """Neither waits for the other when too many steps are skipped."""
    reported = errors(two / "ends")
    assert len(reported) == 2 and reported[0] == reported[1] and "step 2 is not finite" in reported[0]
    report = json.loads((two / "ends" / "nonfinite-2.json").read_text())
    assert [process["values"]["loss/generator"][0] == "nan" for process in report["processes"]] == [False, True]


def test_processes_do_not_wait_for_one_that_is_gone(two):
    """Of which one tells why, as for a data worker that died, and the other that it is alone."""
    left, why = errors(two / "lost")
    assert re.search("a process that reads clips died.*checkpoint-3 is complete; start again to resume from it$", why)
    assert re.fullmatch(r"another process of the run ended \(.*\); see its own error message", left)


def test_processes_learn_of_a_full_disk_together(two):
    reported = errors(two / "full")
    assert (
        len(reported) == 2
        and reported[0] == reported[1]
        and "No space left" in reported[0]
        and "no checkpoint yet" in reported[0]
    )
    assert not list((two / "full").glob("*checkpoint*"))


@pytest.mark.parametrize(
    ("run", "message"),
    [("samples", "no sample today"), ("export", "No space left"), ("validation", "clip 3 is damaged")],
)
def test_a_failure_on_one_process_ends_all(two, run, message):
    reported = errors(two / run)
    assert len(reported) == 2 and reported[0] == reported[1] and message in reported[0]


@pytest.mark.parametrize(
    ("kind", "message"), [("differs", "read different checkpoints"), ("absent", "no run/checkpoint")]
)
def test_processes_resume_from_one_checkpoint_or_not_at_all(two, kind, message):
    """Output folders that machines do not share would train different weights."""
    reported = [error for node in (0, 1) for error in errors(two / kind / f"node-{node}" / "run")]
    assert len(reported) == 2 and all(
        message in error and "all machines of the run share" in error for error in reported
    )
    assert [path.name for path in checkpoints(two / kind / "node-0" / "run")] == ["checkpoint-1"]


def listed(folder):
    return sorted((folder / "bad_clips.txt").read_text().splitlines())


def test_bad_clips_are_listed_once(two, tmp_path):
    """Over three epochs, by one process and by two, and after a resume."""
    alone(toy_run(tmp_path, **MEETING), Meets(3, 7))
    assert listed(tmp_path) == ["clip3.mp4: no frames", "clip7.mp4: no frames"]
    assert log_lines(tmp_path)[-1]["bad_clips"] == 2
    alone(toy_run(tmp_path, **(MEETING | {"max_steps": 16})), Meets(3, 7, 9))
    for folder in (tmp_path, two / "meets"):
        assert listed(folder) == [f"clip{index}.mp4: no frames" for index in (3, 7, 9)]
        assert log_lines(folder)[-1]["bad_clips"] == 3
    assert errors(two / "meets") == []


def test_too_many_bad_clips_end_the_run(two, tmp_path):
    """Before anything is due to be logged; and again at once until they are repaired."""
    reported = r"(?s)clips could not be read, more than train.max_bad_clips=2.*bad_clips.txt.*\n  clip\d.mp4: no frames"
    for make in (Meets(1, 4, 5, 8), Meets()):
        with pytest.raises(ValueError, match=reported):
            alone(toy_run(tmp_path, **STOPPING), make)
    of_two = errors(two / "stops")
    assert len(of_two) == 2 and of_two[0] == of_two[1] and re.search(reported, of_two[0])
    for folder in (tmp_path, two / "stops"):
        assert 3 <= len(listed(folder)) <= 4 and not (folder / "log.jsonl").exists()
