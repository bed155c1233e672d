"""Steps that are not finite change nothing, clips that cannot be read are counted, and neither makes the host wait."""

import json
import math
import sys
from collections import Counter

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from stages import begin as begin_stage
from stages import build_task, config_of, snapshot
from test_train_loop import begin, log_lines
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from toy_task import START, ToyTask, toy_run

from sweettok.train.checkpoint import checkpoints
from sweettok.train.loop import fit
from sweettok.train.monitor import StepMonitor
from sweettok.train.step import Clock, train_step

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def train(run, **settings):
    AcceleratorState._reset_state(reset_partial_state=True)
    task = ToyTask(run, **settings)
    fit(task, run)
    return task


class Harm:
    """Spoils the generator's loss at some steps, on some processes: its value, its gradients, or both."""

    def __init__(self, steps, kind="both", clips=None):
        self.steps, self.kind, self.clips = steps, kind, clips

    def __call__(self, context, loss):
        if context.step not in self.steps or self.clips not in (None, context.batch_start):
            return loss
        if self.kind == "value":
            return loss + torch.tensor(math.inf)
        if self.kind == "gradient":
            loss.register_hook(lambda gradient: gradient * math.nan)
            return loss
        return loss * math.nan


# ------------------------------------------------------------------------------------------------------ skipped steps


@pytest.mark.parametrize("kind", ["value", "gradient", "both"])
def test_a_skipped_step_changes_no_weight_moment_or_buffer(tmp_path, kind):
    run = toy_run(tmp_path)
    task = ToyTask(run, change_loss=Harm([START + 1], kind))
    session, batches = begin(task, run)
    for _ in range(START + 1):
        train_step(session, batches, Clock())
    modules = [trained.module for trained in task.trained.values()]
    before = [snapshot(module) for module in modules]
    moments = [
        {key: value.clone() for key, value in entry.items() if value is not None}
        for trained in task.trained.values()
        for entry in trained.optimizer.state.values()
    ]
    train_step(session, batches, Clock())
    for module, old in zip(modules, before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in module.state_dict().items())
    after = [entry for trained in task.trained.values() for entry in trained.optimizer.state.values()]
    for old, new in zip(moments, after, strict=True):
        assert all(torch.equal(value, new[key]) for key, value in old.items())
    # Averages and schedules follow the steps, so that they can be reported from the step alone.
    assert session.state.ema.calls == task.trained["generator"].scheduler.last_epoch == START + 2
    assert task.trained["discriminator"].scheduler.last_epoch == 2
    assert session.monitor.check(wait=True) is False and session.state.skipped == session.state.skipped_in_a_row == 1

    train_step(session, batches, Clock())
    session.monitor.check(wait=True)
    assert (session.state.skipped, session.state.skipped_in_a_row) == (1, 0)
    assert not any(torch.equal(task.model.state_dict()[name], before[0][name]) for name in before[0])


@pytest.mark.parametrize("stage", ["proxy", "stage2"])
def test_statistics_survive_a_skipped_step(runs, stage):
    """The code table and the discriminator's norms, which change before a step is known to count."""
    task = build_task(config_of(runs, stage))
    session, batches = begin_stage(task, task.run)
    train_step(session, batches, Clock())
    modules = [task.model, task.trained["discriminator"].bare]
    before = [snapshot(module) for module in modules]
    decoder = task.model.decoder if stage == "proxy" else task.model.pixel_decoder
    poisons = [decoder.register_forward_hook(lambda module, inputs, output: output * math.nan)]
    if stage == "proxy":  # features as well, which its code table averages
        poisons.append(
            task.model.register_forward_hook(lambda *args: args[2]._replace(features=args[2].features * math.nan))
        )
    train_step(session, batches, Clock())
    for poison in poisons:
        poison.remove()
    session.monitor.check(wait=True)
    assert session.state.skipped == 1
    for module, old in zip(modules, before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in module.state_dict().items())
    train_step(session, batches, Clock())
    for module in modules:
        assert all(value.isfinite().all() for value in module.state_dict().values())
    moved = {name for name, value in modules[1].state_dict().items() if not torch.equal(value, before[1][name])}
    assert any("running_mean" in name for name in moved)


def test_too_many_in_a_row_end_the_run(tmp_path):
    settings = {"max_steps": 9, "save_every": 2, "max_skipped_steps": 2, "eval_every": 0}
    train(toy_run(tmp_path / "enough", **settings), change_loss=Harm([1, 2, 4, 5]))
    assert [line["skipped_steps"] for line in log_lines(tmp_path / "enough")] == [0, 1, 2, 2, 3, 4, 4, 4, 4]
    with pytest.raises(FloatingPointError, match=r"step 5 is not finite, nor were the 2 before.*loss/generator"):
        train(toy_run(tmp_path / "many", **settings), change_loss=Harm([2, 3, 4]))
    reported = json.loads((tmp_path / "many" / "nonfinite-5.json").read_text(), parse_constant=pytest.fail)
    assert (reported["step"], reported["skipped_in_a_row"]) == (5, 3)
    assert {"grad_norm/generator", "loss/generator"} <= set(reported["not_finite"])
    (process,) = reported["processes"]
    assert process["values"]["loss/generator"] == ["nan"] and process["values"]["error"][0] > 0
    assert len(process["clips"]) == 4 and all("/" in clip for clip in process["clips"])
    weights = load_file(checkpoints(tmp_path / "many")[-1] / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())

    # What was skipped before a checkpoint counts after it.
    with pytest.raises(FloatingPointError, match="step 5 is not finite"):
        train(toy_run(tmp_path / "many", **settings), change_loss=Harm([4]))


def test_sums_are_read_late_on_a_device(tmp_path, monkeypatch):
    """As where the host queues steps ahead: the same steps are skipped, and the run ends a step later."""
    original = StepMonitor.__init__

    def late(self, *args):
        original(self, *args)
        self.lag = 1

    monkeypatch.setattr(StepMonitor, "__init__", late)
    settings = {"max_steps": 9, "save_every": 20, "log_every": 20, "eval_every": 0, "max_skipped_steps": 1}
    harm = Harm([3, 4, 5])
    with pytest.raises(FloatingPointError, match="step 5 is not finite"):
        task = ToyTask(toy_run(tmp_path, **settings), change_loss=harm)
        fit(task, toy_run(tmp_path, **settings))
    assert task.calls == 6
    assert (tmp_path / "nonfinite-5.json").is_file()


# ------------------------------------------------------------------------------------------------------- no waiting


class Waits(TorchDispatchMode):
    """Counts operators that, on a device, would wait for it: those whose result is a number or depends on values."""

    NAMES = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim", "_unique2"}

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in self.NAMES:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


def waits_of(monkeypatch, work) -> Counter:
    """What waits while `work()` runs: operators, and values that leave a tensor, but for the sums of monitor.py."""
    with monkeypatch.context() as patch, Waits() as waits:
        for name in ("tolist", "cpu", "numpy", "item", "__bool__", "__float__", "__int__"):
            original = getattr(Tensor, name)

            def counted(self, *args, _name=name, _original=original, **kwargs):
                caller = sys._getframe(1).f_code.co_filename
                sums = _name == "tolist" and caller.endswith("monitor.py")
                waits.found[_name] += not sums and "data" not in caller and "collate" not in caller
                return _original(self, *args, **kwargs)

            patch.setattr(Tensor, name, counted)
        work()
    return +waits.found


def test_quiet_steps_do_not_wait(tmp_path, monkeypatch):
    run = toy_run(tmp_path)
    session, batches = begin(ToyTask(run), run)

    def steps():
        for _ in range(4):
            train_step(session, batches, Clock())
            session.monitor.check(wait=False)

    assert waits_of(monkeypatch, steps) == Counter()
    scalar = torch.ones(())
    assert waits_of(monkeypatch, lambda: [scalar.item(), bool(scalar), scalar.tolist()]).total() >= 3


def test_tasks_without_problems_have_none(tmp_path):
    train(toy_run(tmp_path))
    assert not (tmp_path / "bad_clips.txt").exists()
    assert {line["bad_clips"] for line in log_lines(tmp_path)} == {0}
