"""One loop for every stage: results depend on the configuration, not on how the work is split or interrupted."""

import json
import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn
from toy_task import START, ToyTask, toy_run

from sweettok.train import loop
from sweettok.train.checkpoint import checkpoints
from sweettok.train.evaluate import spread
from sweettok.train.loop import fit
from sweettok.train.session import BatchShare, make_accelerator, start
from sweettok.train.step import Clock, train_step
from sweettok.train.task import StepContext


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps one state for each process, with the precision that was asked for first."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train(output_dir, fail_at=None, **settings):
    run = toy_run(output_dir, **settings)
    task = ToyTask(run, fail_at)
    fit(task, run)
    return task


def log_lines(output_dir, kind="train/"):
    lines = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if any(key.startswith(kind) for key in line)]


def results(line):
    """What a log line says about training, without what depends on the machine."""
    return {key: value for key, value in line.items() if key.startswith(("train/", "eval/", "lr/")) or key == "step"}


def assert_same_weights(one, other, tolerance):
    for name in ("model", "ema", "discriminator"):
        first, second = load_file(one / f"{name}.safetensors"), load_file(other / f"{name}.safetensors")
        assert first.keys() == second.keys()
        for key in first:
            torch.testing.assert_close(first[key], second[key], rtol=0, atol=tolerance, msg=f"{name}: {key}")


# ------------------------------------------------------------------------------------------- splitting the work


def test_accumulation_equals_the_big_batch(tmp_path):
    train(tmp_path / "big")
    task = train(tmp_path / "small", micro_batch_size=1)
    assert task.calls == 6 * 4
    assert_same_weights(tmp_path / "big" / "checkpoint-6", tmp_path / "small" / "checkpoint-6", 1e-13)
    for big, small in zip(log_lines(tmp_path / "big"), log_lines(tmp_path / "small"), strict=True):
        assert results(big) == pytest.approx(results(small), rel=1e-6)


def test_processes_exchange_gradients_on_the_last_micro_batch_only(tmp_path, monkeypatch):
    run = toy_run(tmp_path, micro_batch_size=1)
    task = ToyTask(run)
    session, batches = begin(task, run)
    held, seen = [], []

    @contextmanager
    def no_sync(module):
        held.append(module)
        yield
        held.remove(module)

    monkeypatch.setattr(session.accelerator, "no_sync", no_sync)
    task.model.register_forward_hook(lambda *_: seen.append(list(held)))
    train_step(session, batches, Clock())
    modules = [trained.module for trained in task.trained.values()]
    assert seen == [modules, modules, modules, []]


@pytest.mark.parametrize(
    ("total", "micro", "world", "reported"),
    [
        (10, None, 4, "8 or 12"),
        (2, None, 4, "4 or 8"),
        (16, 3, 2, "1, 2, 4, 8"),
    ],
)
def test_batches_that_do_not_divide(tmp_path, total, micro, world, reported):
    config = toy_run(tmp_path, global_batch_size=total, micro_batch_size=micro).train
    with pytest.raises(ValueError, match=reported):
        BatchShare.of(config, world, 0)


def test_shares_tile_the_global_batch(tmp_path):
    config = toy_run(tmp_path, global_batch_size=12, micro_batch_size=2).train
    shares = [BatchShare.of(config, 3, rank) for rank in range(3)]
    contexts = [share.context(7, 1, i) for share in shares for i in range(share.micro_batches)]
    draws = torch.arange(12)
    assert torch.cat([context.own(draws) for context in contexts]).tolist() == list(range(12))
    numbers = {int(torch.randint(2**60, (), generator=context.generator("a"))) for context in contexts}
    assert len(numbers) == 1


def test_random_numbers_depend_on_seed_step_and_purpose():
    def number(step, seed, purpose):
        context = StepContext(step, seed, 0, 2, 4)
        return int(torch.randint(2**60, (), generator=context.generator(purpose)))

    assert len({number(0, 0, "a"), number(1, 0, "a"), number(0, 1, "a"), number(0, 0, "b")}) == 4
    with pytest.raises(ValueError, match="all 4 clips"):
        StepContext(0, 0, 0, 2, 4).own(torch.zeros(2))


# ---------------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_equals_the_unbroken_run(tmp_path, workers):
    unbroken = train(tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", fail_at=4, num_workers=workers)
    assert [path.name for path in checkpoints(tmp_path / "broken")] == ["checkpoint-3"]
    assert len(log_lines(tmp_path / "broken")) == 4
    resumed = train(tmp_path / "broken", num_workers=workers)

    assert resumed.fed == unbroken.fed[3 * 4 :]
    assert resumed.calls == unbroken.calls
    assert_same_weights(tmp_path / "unbroken" / "checkpoint-6", tmp_path / "broken" / "checkpoint-6", 0)
    for path in ("checkpoint-6/model.safetensors", "checkpoint-6/ema.safetensors", "final/model.safetensors"):
        assert (tmp_path / "unbroken" / path).read_bytes() == (tmp_path / "broken" / path).read_bytes()
    one, other = (
        torch.load(tmp_path / name / "checkpoint-6" / "optimizers.pt", weights_only=True)
        for name in ("unbroken", "broken")
    )
    assert_equal(one, other)
    for kind in ("train/", "eval/"):
        lines = [log_lines(tmp_path / name, kind) for name in ("unbroken", "broken")]
        assert [results(line) for line in lines[0]] == [results(line) for line in lines[1]]


def assert_equal(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        for first, second in zip(one, other, strict=True):
            assert_equal(first, second)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_a_finished_run_does_nothing_more(tmp_path, capsys):
    train(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "checkpoint" in str(path)}
    log, final = (tmp_path / "log.jsonl").read_text(), (tmp_path / "final").stat().st_mtime_ns
    task = train(tmp_path)
    assert task.fed == []
    assert "finished at step 6" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "checkpoint" in str(path)}
    assert (tmp_path / "log.jsonl").read_text() == log
    assert (tmp_path / "final").stat().st_mtime_ns == final


def test_a_new_run_needs_a_folder_of_its_own(tmp_path):
    train(tmp_path, max_steps=1)
    with pytest.raises(ValueError, match="not empty and train.resume=false"):
        train(tmp_path, resume=False)


# ------------------------------------------------------------------------------------------------- trained modules


def test_each_module_has_its_own_schedule_and_start(tmp_path):
    task = train(tmp_path)
    lines = log_lines(tmp_path)
    assert [line["lr/generator"] for line in lines] == pytest.approx([0.05 * (1 - k / 6) for k in range(6)])
    assert ["lr/discriminator" in line for line in lines] == [step >= START for step in range(6)]
    assert lines[START]["lr/discriminator"] == 0.05
    assert task.trained["discriminator"].scheduler.last_epoch == 6 - START
    assert {"train/loss/discriminator", "train/grad_norm/discriminator"} <= lines[START].keys()


def test_gradients_are_clipped_for_each_module(tmp_path):
    run = toy_run(tmp_path)
    task = ToyTask(run)
    session, batches = begin(task, run)
    before = [param.clone() for param in task.model.parameters()]
    report = train_step(session, batches, Clock())
    moved = torch.cat([(old - new).flatten() for old, new in zip(before, task.model.parameters(), strict=True)])
    assert report.scalars["grad_norm/generator"][0] > 0.1
    assert moved.norm().item() == pytest.approx(0.05 * 0.1, rel=1e-4)


def begin(task, run):
    """The loop's own start, for looking at single steps."""
    session = start(task, run, make_accelerator(run.train))
    return session, iter(loop.make_loader(task.train_dataset, session.state.sampler, 0))


def test_an_overflow_of_fp16_is_skipped_and_lowers_the_scale(tmp_path):
    run = toy_run(tmp_path)
    task = ToyTask(run)
    session, batches = begin(task, run)
    session.accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    generator = task.trained["generator"]
    train_step(session, batches, Clock())
    assert (session.state.ema.calls, generator.scheduler.last_epoch) == (1, 1)

    weights = [param.clone() for param in task.model.parameters()]
    hook = task.model.layers[0].bias.register_hook(lambda grad: grad * float("inf"))
    train_step(session, batches, Clock())
    hook.remove()
    assert (session.state.ema.calls, generator.scheduler.last_epoch, session.state.step) == (2, 2, 2)
    assert all(torch.equal(old, new) for old, new in zip(weights, task.model.parameters(), strict=True))
    assert scaler.get_scale() == 0.5

    train_step(session, batches, Clock())
    assert not any(torch.equal(old, new) for old, new in zip(weights, task.model.parameters(), strict=True))
    assert task.trained["discriminator"].scheduler.last_epoch == 1
    assert session.monitor.check(wait=True) is False and session.state.skipped == 1


def test_a_missing_loss_is_noticed(tmp_path):
    run = toy_run(tmp_path)
    task = ToyTask(run)
    task.trained["discriminator"].start_step = 0
    with pytest.raises(AssertionError, match="losses came from .'generator'. at step 0"):
        fit(task, run)


# -------------------------------------------------------------------------------------------------- looking at it


def test_validation_counts_every_clip_once_with_averaged_weights(tmp_path):
    task = train(tmp_path, ema_decay=0.5)
    (three, six) = log_lines(tmp_path, "eval/")
    assert (three["step"], six["step"]) == (3, 6)
    weights = load_file(tmp_path / "checkpoint-6" / "ema.safetensors")
    assert not torch.equal(weights["layers.0.weight"], task.model.layers[0].weight)
    task.model.load_state_dict(weights)
    task.model.eval()
    clips = torch.stack([task.validation_dataset[i]["clip"] for i in range(7)])
    with torch.no_grad():
        expected = (task.model(clips) - clips).square().mean().item()
    assert six["eval/error"] == pytest.approx(expected, rel=1e-12)
    exported = load_file(tmp_path / "final" / "model.safetensors")
    assert all(torch.equal(exported[name], weights[name]) for name in weights)


def test_looking_leaves_weights_and_modes_alone(tmp_path):
    train(tmp_path / "quiet", eval_every=0)
    run = toy_run(tmp_path / "looking", eval_every=1, sample_every=1, eval_clips=2)
    task = ToyTask(run)
    task.trained["discriminator"].module.eval()
    fit(task, run)
    assert task.model.training and not task.trained["discriminator"].module.training
    assert_same_weights(tmp_path / "quiet" / "checkpoint-6", tmp_path / "looking" / "checkpoint-6", 0)
    samples = sorted(path.name for path in (tmp_path / "looking" / "samples").iterdir())
    assert samples[:3] == ["00000001_0.mp4", "00000001_1.mp4", "00000002_0.mp4"] and len(samples) == 12


def test_without_validation_data_the_training_batch_is_shown(tmp_path):
    run = toy_run(tmp_path, max_steps=1, sample_every=1, num_samples=3)
    task = ToyTask(run)
    task.validation_dataset = None
    fit(task, run)
    assert len(list((tmp_path / "samples").iterdir())) == 3
    assert log_lines(tmp_path, "eval/") == []


def test_logged_scalars_are_means_since_the_last_line(tmp_path):
    train(tmp_path / "each")
    train(tmp_path / "window", log_every=3)
    each, window = log_lines(tmp_path / "each"), log_lines(tmp_path / "window")
    assert [line["step"] for line in window] == [3, 6]
    for line, steps in zip(window, (each[:3], each[3:]), strict=True):
        for name in ("train/error", "train/loss/generator", "train/grad_norm/discriminator"):
            values = [step[name] for step in steps if name in step]
            assert line[name] == pytest.approx(sum(values) / len(values), rel=1e-6), name
        assert line["lr/generator"] == steps[-1]["lr/generator"]


def test_validation_clips_are_spread_over_the_list(tmp_path):
    assert list(spread(range(10), 4)) == [0, 2, 5, 7]
    assert spread(range(3), 4) == spread(range(3), None) == range(3)
    run, seen = toy_run(tmp_path, max_steps=1, eval_every=1, eval_clips=3), []
    task = ToyTask(run)
    validate = task.validate
    task.validate = lambda batch: seen.extend(batch["key"]) or validate(batch)
    fit(task, run)
    assert seen == ["0/0", "0/2", "0/4"]


def test_log_has_speed_and_each_step_once(tmp_path):
    train(tmp_path, log_every=4, save_every=5)
    lines = log_lines(tmp_path)
    assert [line["step"] for line in lines] == [4, 5, 6]
    expected = {"time", "clips_per_second", "step_seconds", "data_seconds", "train/error", "train/updates"}
    assert expected <= lines[0].keys()
    assert 0 < lines[0]["data_seconds"] < lines[0]["step_seconds"]


def test_what_was_broken_off_after_saving_is_done(tmp_path, monkeypatch):
    """Validation is not left out, and not done twice; an export of fewer steps does not stay."""
    train(tmp_path, max_steps=3)
    before = (tmp_path / "final" / "model.safetensors").read_bytes()

    def kill(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", kill)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, max_steps=6)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-6"]
    assert [line["step"] for line in log_lines(tmp_path, "eval/")] == [3]
    for _ in range(2):
        task = train(tmp_path, max_steps=6)
        assert task.fed == []
        assert [line["step"] for line in log_lines(tmp_path, "eval/")] == [3, 6]
        averages = load_file(tmp_path / "checkpoint-6" / "ema.safetensors")
        final = load_file(tmp_path / "final" / "model.safetensors")
        assert all(torch.equal(final[name], averages[name]) for name in averages)
    assert (tmp_path / "final" / "model.safetensors").read_bytes() != before


def test_a_resumed_run_goes_on_in_the_same_tracker(tmp_path, monkeypatch):
    """With the same identity, even if it was broken off before it saved anything."""
    begun = []
    run = SimpleNamespace(log=lambda values, step: None, finish=lambda: None)
    fake = SimpleNamespace(init=lambda **settings: begun.append(settings["id"]) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for fail_at in (1, 4, None):
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.raises(KeyboardInterrupt) if fail_at is not None else nullcontext():
            train(tmp_path, fail_at=fail_at, trackers=["wandb"])
    assert len(begun) == 3 and len(set(begun)) == 1
    assert [line["step"] for line in log_lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_optimizers_must_be_able_to_skip(tmp_path):
    run = toy_run(tmp_path)
    task = ToyTask(run)
    task.trained["generator"].optimizer = torch.optim.SGD(task.model.parameters(), lr=0.05)
    with pytest.raises(ValueError, match="optimizer of generator must be fused=True"):
        fit(task, run)


# ------------------------------------------------------------------------------------------------- the machine


def test_bf16_keeps_weights_in_full_precision(tmp_path):
    run = toy_run(tmp_path, mixed_precision="bf16", max_steps=2)
    task = ToyTask(run)
    task.model.float()
    seen = []
    task.model.layers[2].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    fit(task, run)
    assert set(seen) == {torch.bfloat16}
    assert all(param.dtype == torch.float32 for param in task.model.parameters())


def test_compiled_modules_learn_the_same(tmp_path, monkeypatch):
    original, compiled = nn.Module.compile, []

    def compile_eagerly(self):
        compiled.append(self)
        original(self, backend="aot_eager")

    train(tmp_path / "plain", max_steps=3)
    monkeypatch.setattr(nn.Module, "compile", compile_eagerly)
    task = train(tmp_path / "compiled", max_steps=3, compile=True)
    assert compiled == [trained.bare for trained in task.trained.values()]
    assert_same_weights(tmp_path / "plain" / "checkpoint-3", tmp_path / "compiled" / "checkpoint-3", 1e-12)


@pytest.mark.parametrize("fast", [False, True])
def test_tf32_and_cudnn_s_benchmark_follow_the_settings(tmp_path, fast):
    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    flags = cudnn.flags()  # restores what it finds
    with flags:
        make_accelerator(toy_run(tmp_path, tf32=fast, cudnn_benchmark=fast).train)
        assert (cudnn.allow_tf32, cudnn.benchmark) == (fast, fast)
        assert torch.get_float32_matmul_precision() == ("high" if fast else "highest")
    torch.set_float32_matmul_precision(before)


def test_processes_that_do_not_find_each_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.PartialState", lambda **_: SimpleNamespace(num_processes=1))
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="ACCELERATE_USE_CPU"):
        make_accelerator(toy_run(tmp_path).train)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can train in fp16")
def test_fp16_needs_a_gpu(tmp_path):
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        make_accelerator(toy_run(tmp_path, mixed_precision="fp16").train)
