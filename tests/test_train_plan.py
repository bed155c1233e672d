"""The plan of a training, held to real steps of the same stages."""

import json

import pytest
import stages
import torch
from stages import STAGES, config_of
from torch.utils.flop_counter import FlopCounterMode

from sweettok.stages import load_config
from sweettok.stages.facts import Facts
from sweettok.stages.plan import RESERVE, Ledger, Rehearsal, leave_out_graph, plan, without_memory
from sweettok.tokenizer.codebook import LanguageCodebook
from sweettok.train import __main__ as command
from sweettok.train.loop import Clock, train_step
from sweettok.train.session import BatchShare

REHEARSED = ("stage2/ucf101", "generator/k600")
CONFIGS = sorted(path for path in (stages.ROOT / "configs").rglob("*.yaml") if path.parent.name != "accelerate")


def real(run):
    """A real task at work, after its first step; graphs left out, as in the plan."""
    task = stages.build_task(run)
    for part in task.model.modules():
        if isinstance(part, LanguageCodebook):
            leave_out_graph(part)
    session, batches = stages.begin(task, run)
    train_step(session, batches, Clock())
    return task, session, batches


def modules_of(task) -> list[torch.nn.Module]:
    own = [value for value in vars(task).values() if isinstance(value, torch.nn.Module)]
    return [*own, *(trained.module for trained in task.trained.values())]


def saved_bytes(task, step) -> int:
    """Bytes of all storages that are kept for the backward passes of a step, weights and buffers apart."""
    own = {value.untyped_storage().data_ptr() for module in modules_of(task) for value in module.state_dict().values()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), storage)  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("micro", [4, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_the_plan_is_that_of_a_real_step(runs, fresh_accelerator, stage, micro):
    run = config_of(runs, stage, f"train.micro_batch_size={micro}")
    planned = plan(run)
    task, session, batches = real(run)
    with FlopCounterMode(display=False) as counter:
        train_step(session, batches, Clock())
    assert planned.flops == counter.get_total_flops() > 0
    trained = {name: sum(p.numel() for p in trained.module.parameters() if p.requires_grad)
               for name, trained in task.trained.items()}  # fmt: skip
    assert planned.trained == trained
    moments = [value for trained in task.trained.values() for state in trained.optimizer.state.values()
               for name, value in state.items() if name != "step"]  # fmt: skip
    assert planned.memory["moments"] == sum(value.nbytes for value in moments)
    assert planned.memory["average"] == sum(value.nbytes for value in session.state.ema.shadow.values())
    frozen = {id(p): p.numel() for module in modules_of(task) for p in module.parameters() if not p.requires_grad}
    assert planned.frozen == sum(frozen.values())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_activations_are_those_of_a_real_step(runs, fresh_accelerator, stage, recompute):
    run = config_of(runs, stage, f"train.gradient_checkpointing={recompute}")
    facts = Facts(run)
    with without_memory() as ledger:
        _, planned = Rehearsal(run, facts, ledger, 1, False).step(BatchShare.of(run.train, 1, 0))
    task, session, batches = real(run)
    context, batch = session.share.context(run.train.max_steps - 1, 0), next(batches)

    def step():
        for _, loss, _ in task.losses(batch, context):
            loss.backward()

    step()  # from now on there are gradients to add to
    with Ledger() as ledger:
        for value in (value for module in modules_of(task) for value in module.state_dict(keep_vars=True).values()):
            ledger.enter(value.untyped_storage())
            if value.grad is not None:
                ledger.enter(value.grad.untyped_storage())
        ledger.start()
        step()
    saved = saved_bytes(task, step)
    # Of what CPUs hold for themselves, as in a mean squared error, the plan knows nothing; it counts the batch too.
    assert 0.85 * ledger.most <= planned <= 1.1 * ledger.most
    # More than what is kept for the backward passes: what they make. Less: not those of all modules at once.
    assert 0.85 * saved <= planned <= 4 * saved


def test_clips_tokens_and_epochs(runs, tmp_path):
    planned = plan(config_of(runs, "stage1", "train.max_steps=7", "train.micro_batch_size=1"), devices=2)
    assert (planned.share.micro_batches, planned.clips, planned.epochs) == (2, 28, 28 / 8)
    assert planned.tokens_per_clip == 3 * 2 * 2 + 3 * 4 * 4
    assert plan(config_of(runs, "proxy")).tokens_per_clip == 3 * 4 * 4
    assert plan(config_of(runs, "generator")).epochs == 3 * 4 / 8
    one = plan(config_of(runs, "stage1", "train.max_steps=7", "train.micro_batch_size=4"))
    assert one.flops == pytest.approx(planned.flops, rel=0.02)  # but for the codes, made once for each micro-batch
    assert planned.memory["buckets"] == planned.memory["gradients"] == 4 * planned.trained["generator"]
    assert "buckets" not in one.memory
    with pytest.raises(ValueError, match="does not divide over 3 processes"):
        plan(config_of(runs, "stage1"), devices=3)


def test_the_largest_batch_that_fits(runs):
    run = config_of(runs, "generator", "train.global_batch_size=12")
    sizes = {size: plan(config_of(runs, "generator", "train.global_batch_size=12", f"train.micro_batch_size={size}"))
             for size in (1, 4, 12)}  # fmt: skip
    for size, planned in sizes.items():
        found = plan(run, memory=planned.bytes / (1 - RESERVE) + 1)
        assert found.share.micro_batch == size and found.bytes == planned.bytes
    assert list(planned.bytes for planned in sizes.values()) == sorted(planned.bytes for planned in sizes.values())
    with pytest.raises(ValueError, match="not even one clip fits.*gradient_checkpointing"):
        plan(run, memory=sizes[1].bytes / (1 - RESERVE) - 1000)


def test_sharding_shares_out(runs):
    whole, shared = (plan(config_of(runs, "generator", "train.mixed_precision=bf16"), devices=4, sharded=sharded)
                     for sharded in (False, True))  # fmt: skip
    for part in ("weights", "gradients", "moments", "average"):
        assert shared.memory[part] == whole.memory[part] // 4
    assert 0 < shared.memory["gathered"] < 3 * whole.memory["weights"]
    assert (shared.flops, shared.frozen, shared.trained) == (whole.flops, whole.frozen, whole.trained)
    with pytest.raises(ValueError, match="stage2 stage cannot be sharded"):
        plan(config_of(runs, "stage2"), devices=4, sharded=True)


def test_precision_and_recomputation_save_memory(runs):
    plain, half, again = (
        plan(config_of(runs, "generator", "generator.num_layers=8", setting))
        for setting in ("train.seed=0", "train.mixed_precision=bf16", "train.gradient_checkpointing=true")
    )
    assert half.memory["activations"] < plain.memory["activations"] > again.memory["activations"]
    assert half.flops == plain.flops < again.flops
    assert half.memory["weights"] == plain.memory["weights"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_configurations_are_planned_without_their_data(path, monkeypatch, tmp_path):
    """Some at full length; of the others all but the micro-batch itself, which tiny stages rehearse above."""
    monkeypatch.chdir(tmp_path)
    if f"{path.parent.name}/{path.stem}" not in REHEARSED:
        monkeypatch.setattr(Rehearsal, "step", lambda rehearsal, share: (1, 1))
    planned = plan(load_config(path), devices=4)
    assert planned.flops > 0 and planned.epochs is None
    assert any(note.startswith("epochs are unknown") for note in planned.notes)
    assert not list(tmp_path.iterdir())


def test_stages_of_one_plan_know_each_other(monkeypatch, tmp_path, capsys):
    """The tiny generator's words and the sizes of its tokenizer come from the tiny stage 1."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Rehearsal, "step", lambda rehearsal, share: (1, 1))
    folder = stages.ROOT / "configs" / "tiny"
    paths = [str(folder / f"{name}.yaml") for name in ("stage1", "stage2", "generator")]
    assert command.main(["plan", *paths, "train.max_steps=5", "--devices", "2", "--json", "plan.json"]) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "plan.json").read_text())
    assert [found[path]["tokens_per_clip"] for path in paths] == [384] * 3
    assert all(found[path]["clips"] == 5 * found[path]["share"]["global_batch"] for path in paths)
    assert "no tokenizer" not in shown and "2 devices x 1 micro-batches x 8 clips" in shown
    (told, *_) = Facts(load_config(paths[1])).notes
    assert told.startswith("no tokenizer at outputs/tiny/stage1/final: the release's sizes assumed")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["missing.yaml"], "no configuration file at missing.yaml"),
        (["train.max_steps=3"], "give the configuration file too"),
        (["TINY", "train.steps=3"], "train.steps"),
        (["TINY", "--devices", "0"], "devices and memory must be above 0"),
        (["TINY", "--memory", "0.001"], "not even one clip fits"),
        (["TINY", "--devices", "3"], "does not divide over 3 processes"),
    ],
)
def test_problems_are_told_in_one_line(words, told, capsys):
    tiny = str(stages.ROOT / "configs" / "tiny" / "stage1.yaml")
    assert command.main(["plan", *(tiny if word == "TINY" else word for word in words)]) == 1
    out, error = capsys.readouterr()
    assert not out and error.startswith("error: ") and told in error and error.count("\n") == 1
