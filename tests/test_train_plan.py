"""The plan of a training run, compared with real steps of the same stages and with formulas written by hand."""

import json

import pytest
import stages
import torch
from accelerate.state import AcceleratorState
from stages import STAGES, TOKENIZER, config_of
from torch.utils.flop_counter import FlopCounterMode

from sweettok.cli.main import main
from sweettok.stages import build_task, load_config
from sweettok.stages import plan as planning
from sweettok.stages.plan import DryRun, plan
from sweettok.train.step import Clock, train_step

CONFIGS = sorted(
    path for path in (stages.ROOT / "configs").rglob("*.yaml") if path.parent.name not in ("accelerate", "base")
)
CARD = 80e9  # bytes of the GPUs that the configurations are for
LARGEST = ("stage1/ucf101", "stage2/k600")  # those that come closest to it; the others are slow to plan in full, too


def real(run):
    """A real task after its first step."""
    AcceleratorState._reset_state(reset_partial_state=True)
    task = build_task(run)
    session, batches = stages.begin(task, run)
    train_step(session, batches, Clock())
    return task, session, batches


# ------------------------------------------------------------------------------------------------------------ FLOPs


def linear(rows: int, *widths: int) -> int:
    """Multiplications and additions of a chain of linear layers."""
    return sum(2 * rows * a * b for a, b in zip(widths, widths[1:], strict=False))


def test_flops_of_the_generator_by_hand(runs):
    """Weights: one product forward, two backward. Attention: two forward, and five backward, which recomputes one."""
    batch, run = 4, config_of(runs, "generator")
    config = build_task(run).model.config
    dim, places, vocab = config.dim, config.sequence.block_size, config.sequence.vocab_size
    layer = linear(batch * places, dim, 3 * dim) + linear(batch * places, dim, dim, 4 * dim, dim)
    head = linear(batch * config.sequence.target_length, dim, vocab)
    attention = 2 * batch * places * places * dim
    assert plan(run).flops == 3 * (config.num_layers * layer + head) + config.num_layers * 7 * attention


def test_attention_of_stage_1_by_hand(runs, monkeypatch):
    """Rows x queries x keys of every attention layer of tests/stages.py, three slices of 4 x 4 places."""
    clips, slices, places, queries, null = 4, 3, 16, 4, TOKENIZER.get("num_null_kv", 2)
    trained = [
        (clips * slices, places, places),  # encoder: places of a slice
        (clips, queries, queries),  # encoder: spatial queries
        (clips, queries, places),  # encoder: spatial queries to places
        (clips * places, slices - 1, slices - 1),  # encoder: motion of a place
        (clips * places, 1, slices - 1),  # encoder: temporal query to the motion of its place
        (clips, queries, queries),  # decoder: spatial latents
        (clips * slices, places, places),  # decoder: places of a slice
        (clips * slices, places, queries + null),  # decoder: places to spatial latents
        (clips * places, slices, 1 + null),  # decoder: a place over time to its temporal latent
    ]
    teacher = [
        (clips * slices, places, places),
        (clips * slices * 4, 4, 4),  # windows; the trained ones are plain products, since their bias is trained
        (clips * places, slices, slices),
    ]
    inner = TOKENIZER["block"]["num_heads"] * TOKENIZER["block"]["head_dim"]

    def products(layers) -> int:
        return sum(2 * inner * rows * queries * keys for rows, queries, keys in layers)

    run = config_of(runs, "stage1")
    whole = plan(run).flops
    monkeypatch.setattr(planning, "FLOPS", planning.flop_registry)
    assert whole - plan(run).flops == 7 * products(trained) + 2 * products(teacher)


@pytest.mark.parametrize("stage", STAGES)
def test_a_plan_is_that_of_a_real_step(runs, fresh_accelerator, monkeypatch, stage):
    """FLOPs but for attention, which torch's own counter leaves out on CPUs; sizes of everything that is kept."""
    monkeypatch.setattr(planning, "FLOPS", planning.flop_registry)
    for micro in (4, 2):
        run = config_of(runs, stage, f"train.micro_batch_size={micro}")
        planned = plan(run)
        task, session, batches = real(run)
        with FlopCounterMode(display=False) as counter:
            train_step(session, batches, Clock())
        if stage == "vtok":  # its head is computed where there are answers; a plan counts all places
            assert planned.flops >= counter.get_total_flops() > 0.999 * planned.flops
        else:
            assert planned.flops == counter.get_total_flops() > 0
    trained = {
        name: sum(param.numel() for param in group.module.parameters() if param.requires_grad)
        for name, group in task.trained.items()
    }
    assert planned.trained == trained
    states = [state for group in task.trained.values() for state in group.optimizer.state.values()]
    moments = [value for state in states for name, value in state.items() if name != "step"]
    assert planned.memory["moments"] == sum(value.nbytes for value in moments)
    assert planned.memory["average"] == sum(value.nbytes for value in session.state.ema.shadow.values())
    frozen = {id(p): p.numel() for module in task.modules for p in module.parameters() if not p.requires_grad}
    assert planned.frozen == sum(frozen.values())


# ----------------------------------------------------------------------------------------------------------- memory


def allocated(step) -> int:
    """The most bytes that the allocator had handed out at once during a step, beyond those before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("stage", STAGES)
def test_activations_are_those_that_a_real_step_allocates(runs, fresh_accelerator, stage):
    for recompute in (False, True):
        run = config_of(runs, stage, f"train.gradient_checkpointing={recompute}")
        task, session, batches = real(run)
        context, batch = session.share.context(run.train.max_steps - 1, 0), next(batches)

        def step(task=task, context=context, batch=batch):
            for _, loss, _ in task.losses(batch, context):
                loss.backward()

        step()  # from now on there are gradients to add to
        measured = allocated(step) + sum(value.nbytes for value in batch.values() if torch.is_tensor(value))
        largest = 4 * max(plan(run).trained.values())
        assert 0.8 * measured <= plan(run).memory["activations"] <= max(1.15 * measured, largest), recompute


def test_precision_and_recomputation_save_memory(runs):
    plain, half, again = (
        plan(config_of(runs, "generator", "generator.num_layers=8", setting))
        for setting in ("train.seed=0", "train.mixed_precision=bf16", "train.gradient_checkpointing=true")
    )
    assert half.memory["activations"] < plain.memory["activations"] > again.memory["activations"]
    assert half.flops == plain.flops < again.flops
    assert half.memory["weights"] == plain.memory["weights"]


def test_the_largest_batch_that_fits(runs):
    run = config_of(runs, "generator", "train.global_batch_size=12")
    sizes = {
        size: plan(config_of(runs, "generator", "train.global_batch_size=12", f"train.micro_batch_size={size}"))
        for size in (1, 4, 12)
    }
    for size, planned in sizes.items():
        found = plan(run, memory=planned.bytes / (1 - planning.RESERVE) + 1)
        assert found.share.micro_batch == size and found.bytes == planned.bytes
    assert list(planned.bytes for planned in sizes.values()) == sorted(planned.bytes for planned in sizes.values())
    with pytest.raises(ValueError, match="not even one clip fits.*gradient_checkpointing"):
        plan(run, memory=sizes[1].bytes / (1 - planning.RESERVE) - 1000)


def test_sharding_divides_the_weights(runs):
    whole, shared = (
        plan(config_of(runs, "generator", "train.mixed_precision=bf16"), devices=4, sharded=sharded)
        for sharded in (False, True)
    )
    for part in ("weights", "gradients", "moments", "average"):
        assert shared.memory[part] == whole.memory[part] // 4
    assert 0 < shared.memory["gathered"] < 3 * whole.memory["weights"]
    assert (shared.flops, shared.frozen, shared.trained) == (whole.flops, whole.frozen, whole.trained)
    with pytest.raises(ValueError, match="stage2 stage cannot be sharded"):
        plan(config_of(runs, "stage2"), devices=4, sharded=True)


# --------------------------------------------------------------------------------------------------- configurations


def test_clips_tokens_and_epochs(runs):
    planned = plan(config_of(runs, "stage1", "train.max_steps=7", "train.micro_batch_size=1"), devices=2)
    assert (planned.share.micro_batches, planned.clips, planned.epochs) == (2, 28, 28 / 8)
    assert planned.tokens_per_clip == 3 * 2 * 2 + 3 * 4 * 4
    assert plan(config_of(runs, "proxy")).tokens_per_clip == 3 * 4 * 4
    assert plan(config_of(runs, "generator")).epochs == 3 * 4 / 8
    assert planned.memory["gradients"] == 4 * planned.trained["generator"]
    with pytest.raises(ValueError, match="does not divide over 3 processes"):
        plan(config_of(runs, "stage1"), devices=3)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if f"{path.parent.name}/{path.stem}" in LARGEST else pytest.mark.slow)
        for path in CONFIGS
    ],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_every_configuration_fits_eight_gpus(path, monkeypatch, tmp_path):
    """Without its data, and leaving the share of memory that a GPU's runtime needs."""
    monkeypatch.chdir(tmp_path)
    run = load_config(path)
    planned = plan(run, devices=8, sharded="1.9b" in path.stem)
    assert planned.flops > 0 and planned.epochs is None
    assert any(note.startswith("epochs are unknown") for note in planned.notes)
    if path.parent.name == "stage2":
        assert planned.notes[0].startswith(f"no tokenizer at {run.tokenizer}: the release's sizes assumed")
    assert planned.bytes < (1 - planning.RESERVE) * CARD
    assert not list(tmp_path.iterdir())


def test_stages_of_one_plan_know_each_other(monkeypatch, tmp_path, capsys):
    """The tiny proxy's sizes are those of stage 1, and the tiny tokenizer's words those of the generator."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DryRun, "step", lambda dry, share: (1, 1))
    paths = [f"configs/tiny/{name}.yaml" for name in ("proxy", "stage1", "stage2", "generator")]
    assert main(["plan", *paths, "train.max_steps=5", "--devices", "2", "--json", "plan.json"]) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "plan.json").read_text())["plans"]
    assert [found[path]["tokens_per_clip"] for path in paths] == [5 * 4 * 4, *3 * [64]]
    assert all(found[path]["clips"] == 5 * found[path]["share"]["global_batch"] for path in paths)
    assert "no tokenizer" not in shown and "2 devices x 1 micro-batches x 4 clips" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.yaml"], "no configuration file at missing.yaml"),
        (["train.max_steps=3"], "give a configuration file, such as"),
        (["TINY", "train.steps=3"], "train.steps"),
        (["TINY", "--devices", "0"], "--devices"),
        (["TINY", "train.global_batch_size=1", "--memory", "0.001"], "not even one clip fits"),
        (["TINY", "--devices", "3"], "does not divide over 3 processes"),
    ],
)
def test_errors_are_one_line(words, message, capsys):
    status = main(["plan", *("configs/tiny/proxy.yaml" if word == "TINY" else word for word in words)])
    out, error = capsys.readouterr()
    assert status == 2 and not out and error.startswith("error: ") and message in error and error.count("\n") == 1
