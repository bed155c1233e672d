"""The stages, at a size that trains in a second: end to end, and part by part."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from safetensors.torch import load_file
from stages import (
    PROXY,
    ROOT,
    STEPS,
    TOKENIZER,
    begin,
    build_task,
    command,
    config_of,
    first_batch,
    log_lines,
    make_task,
    snapshot,
)

from sweettok.config import to_dict
from sweettok.data.preprocess import Preprocessing
from sweettok.generator.model import Generator
from sweettok.pixels import to_float
from sweettok.proxy.model import ProxyTokenizer
from sweettok.stages import STAGES, inputs, load_config
from sweettok.stages.stage1 import Stage1Task
from sweettok.stages.stage2 import Stage2Task
from sweettok.tokenizer.decoder import HEAD_SHARPNESS
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.release import TOKENIZER as NAMES
from sweettok.train.step import Clock, train_step
from sweettok.train.task import StepContext
from sweettok.vtok.language import VideoLanguageModel

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


# ------------------------------------------------------------------------------------------------------ end to end


@pytest.mark.parametrize(
    ("stage", "terms"),
    [
        ("proxy", ("reconstruction", "adversarial", "feature_matching", "discriminator", "commitment")),
        ("spatial", ("code", "quantizer_encoder_side", "quantizer_codebook_side")),
        ("stage1", ("code", "quantizer_encoder_side", "quantizer_codebook_side", "auxiliary")),
        ("stage2", ("reconstruction", "adversarial", "feature_matching", "discriminator")),
        ("generator", ()),
        ("vtok", ()),
    ],
)
def test_script_trains_a_stage(runs, stage, terms):
    folder = runs / stage
    lines = log_lines(folder)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert {f"train/{term}_{kind}" for term in terms for kind in ("loss", "weighted")} <= line.keys()
        assert all(math.isfinite(value) for value in line.values() if isinstance(value, float))
    assert len(log_lines(folder, "eval/")) == 1
    assert load_config(folder / "config.yaml") == config_of(runs, stage)
    assert (folder / f"checkpoint-{STEPS}" / "state.json").is_file()
    assert [path.name for path in (folder / "samples").iterdir()] == ["00000003_0.mp4"]

    kind = {"proxy": ProxyTokenizer, "generator": Generator, "vtok": VideoLanguageModel}.get(stage, SweetTok)
    model = kind.from_pretrained(folder / "final")
    averaged = load_file(folder / f"checkpoint-{STEPS}" / "ema.safetensors")
    assert model.state_dict().keys() == averaged.keys()
    assert all(torch.equal(value, averaged[name]) for name, value in model.state_dict().items())
    training = json.loads((folder / "final" / "config.json").read_text())["training"]
    assert (training["stage"], training["steps"], training["clips in a step"]) == (stage, STEPS, 4)


@torch.no_grad()
def test_exported_tokenizers_decode_by_the_path_of_their_stage(runs):
    video = first_batch(Stage1Task(config_of(runs, "stage1")))["video"]
    for stage, path in (("stage1", "argmax"), ("stage2", "expected")):
        model = SweetTok.from_pretrained(runs / stage / "final")
        assert model.config.pixel_path == path
        logits = model.predict(video).logits
        table = model.pixel_decoder.codebook.embeddings
        if path == "argmax":
            vectors = table[logits.argmax(1)]
        else:
            vectors = torch.einsum("bkthw,kc->bthwc", logits.softmax(1), table)
        pixels = model.decode(model.encode(video).ids)
        assert pixels.shape == video.shape
        torch.testing.assert_close(pixels, model.pixel_decoder(vectors).clamp(-0.5, 0.5), rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------- who learns from what


def test_stage2_trains_the_encoder_too_if_asked(runs):
    """Every parameter has a gradient, and the quantizer and usage losses are logged."""
    run = config_of(runs, "stage2", "train_encoder=true", "loss.quantizer.usage_weight=0.1")
    task = make_task(Stage2Task, run)
    before = snapshot(task.model)
    session, batches = begin(task, run)
    report = train_step(session, batches, Clock())
    assert {"quantizer_encoder_side_loss", "quantizer_codebook_side_loss", "usage_loss"} <= report.scalars.keys()
    for _ in range(STEPS - 1):
        train_step(session, batches, Clock())
    same = {name for name, param in task.model.named_parameters() if torch.equal(param, before[name])}
    assert not same


def test_stage2_trains_decoders_alone(runs):
    run = config_of(runs, "stage2")
    task = make_task(Stage2Task, run)
    trained = {name for name, param in task.model.named_parameters() if param.requires_grad}
    every = {name for name, _ in task.model.named_parameters()}
    assert trained == {name for name in every if name.startswith(("decoder.", "pixel_decoder."))}
    before = snapshot(task.model)
    session, batches = begin(task, run)
    for _ in range(STEPS):
        train_step(session, batches, Clock())
    assert all(param.grad is None for name, param in task.model.named_parameters() if name not in trained)
    same = {name for name, value in task.model.state_dict().items() if torch.equal(value, before[name])}
    assert same == before.keys() - trained


@pytest.mark.parametrize("stage", ["proxy", "stage2"])
def test_each_side_of_the_game_has_its_own_gradients(runs, stage):
    run = config_of(runs, stage)
    set_seed(0)
    task = build_task(run)
    generator, discriminator = task.trained["generator"].parameters, task.trained["discriminator"].parameters
    turns = task.losses(first_batch(task), StepContext(0, 42, 0, 4, 4))
    name, loss, report = next(turns)
    loss.backward()
    assert name == "generator" and report["adversarial_weighted"] != 0 and report["feature_matching_weighted"] != 0
    assert all(param.grad is None for param in discriminator)
    before = [param.grad.clone() for param in generator]
    name, loss, _ = next(turns)
    loss.backward()
    assert name == "discriminator" and next(turns, None) is None
    assert all(torch.equal(param.grad, old) for param, old in zip(generator, before, strict=True))
    assert all(param.grad is not None for param in discriminator) and any(param.grad.any() for param in discriminator)


def test_a_discriminator_starts_without_a_jump(runs):
    """With the release's weights, over twenty steps: less than half of what batches differ by among themselves."""

    def reconstruction(start: int) -> torch.Tensor:
        AcceleratorState._reset_state(reset_partial_state=True)
        run = config_of(
            runs, "stage2", "train.max_steps=40", "optimizer.end_lr=1e-3", f"loss.adversarial.start_step={start}"
        )
        session, batches = begin(make_task(Stage2Task, run), run)
        reports = [train_step(session, batches, Clock()) for _ in range(40)]
        assert ("loss/discriminator" in reports[-1].scalars) == (start < 40)
        return torch.stack([report.scalars["reconstruction_loss"][0] for report in reports])

    never, late = reconstruction(40), reconstruction(20)
    assert torch.equal(never[:20], late[:20])
    spread = never[:20].std() / never[:20].mean()
    assert (late[20:] / never[20:] - 1).mean() < spread / 2


def test_stage1_leaves_teacher_and_pixel_decoder_alone(runs):
    run = config_of(runs, "stage1")
    task = make_task(Stage1Task, run)
    before, teacher = snapshot(task.model), snapshot(task.teacher)
    session, batches = begin(task, run)
    for _ in range(STEPS):
        train_step(session, batches, Clock())
    assert all(torch.equal(value, teacher[name]) for name, value in task.teacher.state_dict().items())
    assert all(param.grad is None for param in task.teacher.parameters())
    same = {name for name, value in task.model.state_dict().items() if torch.equal(value, before[name])}
    parameters = {name for name, _ in task.model.named_parameters()}
    assert same == {name for name in before if name.startswith("pixel_decoder.") or name not in parameters}
    exported = load_file(runs / "stage1" / "final" / "model.safetensors")
    proxy = ProxyTokenizer.from_pretrained(runs / "proxy" / "final").decoder.state_dict()
    assert all(torch.equal(exported[f"pixel_decoder.{name}"], value) for name, value in proxy.items())


def test_auxiliary_layers_are_trained_and_kept_but_not_exported(runs):
    saved = load_file(runs / "stage1" / f"checkpoint-{STEPS}" / "generator.safetensors")
    first = load_file(runs / "stage1" / "checkpoint-1" / "generator.safetensors")
    width = {"spatial": PROXY["code_dim"], "temporal": 2 * PROXY["code_dim"]}  # of three slices
    assert saved.keys() == {f"auxiliary.{branch}.{name}" for branch in width for name in ("weight", "bias")}
    for branch, size in width.items():
        weight = saved[f"auxiliary.{branch}.weight"]
        assert weight.shape == (size, 2 * TOKENIZER["codebook_dim"])
        assert not torch.equal(weight, first[f"auxiliary.{branch}.weight"])
    exported = load_file(runs / "stage1" / "final" / "model.safetensors")
    assert not [name for name in exported if "auxiliary" in name]


def test_auxiliary_targets_are_first_codes_and_their_changes(runs):
    task = make_task(Stage1Task, config_of(runs, "stage1"))
    codes = torch.randint(16, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    spatial, temporal = task.auxiliary_targets(codes)
    table = task.teacher.codebook(torch.arange(16)[None, None, None])[0, 0, 0]
    grid = table[codes]  # (B, t, h, w, c)
    rows, columns = task.model.config.spatial_query_grid
    assert spatial.shape == (2, rows * columns, 4) and temporal.shape == (2, 16, 8)
    torch.testing.assert_close(spatial[1, 1], grid[1, 0, : 4 // rows, 4 // columns :].flatten(0, 1).mean(0))
    torch.testing.assert_close(temporal[1, 6], torch.cat([grid[1, k, 1, 2] - grid[1, 0, 1, 2] for k in (1, 2)]))


def test_halves_of_a_batch_give_the_mean_of_their_losses(runs):
    """What is random about a clip goes with the clip, however the batch is split (here: the proxy's still frames)."""
    task = build_task(
        config_of(runs, "proxy", "loss.adversarial.generator_weight=0", "loss.adversarial.feature_matching_weight=0")
    )
    video = first_batch(task)["video"]

    def loss(start, size):
        context = StepContext(5, 42, start, size, 4)
        return next(task.losses({"video": video[start : start + size]}, context))[1].item()

    assert (loss(0, 2) + loss(2, 2)) / 2 == pytest.approx(loss(0, 4), rel=1e-5)


# ------------------------------------------------------------------------------------------------- where stages start


def test_warm_start_fits_fresh_weights_to_the_clips(runs):
    """The head has the geometry of the proxy's codes, and the latents of the clips find more words."""

    def start(warm: bool) -> Stage1Task:
        return make_task(Stage1Task, config_of(runs, "stage1", f"warm_start={str(warm).lower()}"))

    task = start(True)
    rows, codes = task.model.decoder.head[-1].weight, task.teacher.codebook.embeddings
    torch.testing.assert_close(rows @ rows.T, HEAD_SHARPNESS**2 * codes @ codes.T, rtol=1e-4, atol=1e-4)

    def words_used(warm: bool) -> list[int]:
        task = start(warm)
        task.model.eval()
        with torch.no_grad():
            spatial, temporal = task.model.quantize(to_float(first_batch(task)["video"]))
        return [len(ids.unique()) for ids in (*spatial.ids, *temporal.ids)]

    cold, warm = words_used(False), words_used(True)
    assert all(after >= before for before, after in zip(cold, warm, strict=True)) and sum(warm) > sum(cold)


def test_warm_start_draws_from_the_whole_list(runs, monkeypatch):
    """Lists are often sorted by class."""
    task = make_task(Stage1Task, config_of(runs, "stage1", "warm_start=false"))

    class Hundred:
        asked = []

        def __len__(self):
            return 100

        def __getitem__(self, index):
            self.asked.append(index)
            return {"video": torch.zeros(3, 5, 32, 32, dtype=torch.uint8)}

    task.train_dataset = Hundred()
    monkeypatch.setattr(task.model, "warm_start", lambda video: None)
    task.warm_start()
    assert Hundred.asked == [number * 100 // 16 for number in range(16)] and max(Hundred.asked) > 90


@pytest.mark.parametrize("stage", ["proxy", "spatial", "stage1", "stage2"])
def test_models_save_how_their_clips_are_made(runs, stage):
    assert json.loads((runs / stage / "final" / "config.json").read_text())["config"]["preprocessing"] == {
        "resize": "stretch",
        "position": "center",
        "stride": 1,
        "short": "black",
    }
    changes = ("data.resize=crop", "data.stride=2", "data.short=repeat")
    task = make_task(STAGES[stage], config_of(runs, stage, *changes))
    assert task.model.config.preprocessing == Preprocessing("crop", "center", 2, "repeat")


def test_warm_start_and_init_exclude_each_other(runs, capsys):
    folder = runs / "stage1" / "final"
    assert command(["train", str(runs / "stage1.yaml"), f"init={folder}", f"train.output_dir={runs / 'unused'}"]) == 2
    assert "leave one of them out" in capsys.readouterr().err


def test_init_loads_what_a_published_file_holds(runs, tmp_path):
    trained = SweetTok.from_pretrained(runs / "stage1" / "final")
    part = {name: value for name, value in trained.to_release().items() if name.startswith(("encoder.", "latent_"))}
    torch.save(part, tmp_path / "part.bin")
    run = config_of(runs, "stage1", "warm_start=false")
    fresh = snapshot(make_task(Stage1Task, run).model)
    started = snapshot(make_task(Stage1Task, replace(run, init=str(tmp_path / "part.bin"))).model)
    loaded = {name for name in fresh if NAMES.released_name(name) in part}
    assert loaded and any(not torch.equal(fresh[name], started[name]) for name in loaded)
    for name, value in started.items():
        assert torch.equal(value, trained.state_dict()[name] if name in loaded else fresh[name]), name

    torch.save({**part, "encoder.nonsense": torch.zeros(2)}, tmp_path / "odd.bin")
    with pytest.raises(ValueError, match="not explained by any table.*encoder.nonsense"):
        Stage1Task(replace(run, init=str(tmp_path / "odd.bin")))


def test_init_from_a_folder_of_ours(runs):
    folder = runs / "stage1" / "final"
    task = make_task(Stage1Task, config_of(runs, "stage1", "warm_start=false", f"init={folder}"))
    expected = SweetTok.from_pretrained(folder).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in task.model.state_dict().items())


def test_stage2_from_a_published_stage1_file(runs, tmp_path, monkeypatch):
    trained = SweetTok.from_pretrained(runs / "stage1" / "final")
    file = tmp_path / "stage1.bin"
    torch.save(trained.to_release(), file)
    # Published files have the release's sizes, which are too large for a test.
    sized = partial(SweetTok.from_release, config=trained.config)
    monkeypatch.setattr(inputs.SweetTok, "from_release", sized)
    prior, proxy = f"prior={runs / 'prior'}", f"proxy={runs / 'proxy' / 'final'}"
    task = Stage2Task(config_of(runs, "stage2", f"tokenizer={file}", prior, proxy))
    assert task.model.config.pixel_path == "expected"
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name
    with pytest.raises(ValueError, match="has no pixel decoder: set proxy"):
        Stage2Task(config_of(runs, "stage2", f"tokenizer={file}", prior))
    with pytest.raises(ValueError, match="holds no word graphs: set prior"):
        Stage2Task(config_of(runs, "stage2", f"tokenizer={file}", proxy))
    with pytest.raises(ValueError, match="holds its own proxy and prior: leave proxy empty"):
        Stage2Task(config_of(runs, "stage2", proxy))


# ------------------------------------------------------------------------------------------------------ configurations


CONFIGS = [path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name not in ("accelerate", "base")]


@pytest.mark.parametrize("file", sorted(str(path.relative_to(ROOT)) for path in CONFIGS))
def test_every_configuration_loads(file):
    path = ROOT / file
    run = load_config(path)
    assert isinstance(run, STAGES[run.stage].run_class)
    assert run.stage in (path.parent.name, path.stem)
    on_gpus = path.parent.name not in ("tiny", "mini")
    assert (run.train.tf32, run.train.cudnn_benchmark) == (on_gpus, on_gpus)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (
            "stage1/ucf101",
            {
                "optimizer.lr": 5e-5,
                "optimizer.end_lr": 1e-5,
                "optimizer.warmup_steps": 0,
                "optimizer.betas": [0.9, 0.99],
                "train.max_steps": 150000,
                "train.global_batch_size": 128,
                "train.mixed_precision": "fp16",
            },
        ),
        (
            "stage1/k600",
            {
                "optimizer.lr": 1e-4,
                "optimizer.end_lr": 1e-5,
                "optimizer.warmup_steps": 2500,
                "optimizer.betas": [0.9, 0.99],
                "train.max_steps": 250000,
                "train.global_batch_size": 128,
            },
        ),
        ("stage2/ucf101", {"train.max_steps": 50000, "train.global_batch_size": 64, "train.eval_every": 5000}),
        ("stage2/k600", {"train.max_steps": 200000, "train.global_batch_size": 128, "train.eval_every": 10000}),
    ],
)
def test_configurations_carry_the_numbers_of_the_release(file, expected):
    common = {
        "optimizer.weight_decay": 1e-4,
        "optimizer.decay_rule": "release",
        "optimizer.max_grad_norm": 1.0,
        "train.ema_decay": 0.999,
        "train.seed": 42,
        "data.resize": "stretch",
        "data.short": "black",
        "data.stride": 1,
    }
    if file.startswith("stage1"):
        common |= {
            "tokenizer": to_dict(STAGES["stage1"].run_class().tokenizer),
            "warm_start": False,
            "loss.code_weight": 1.0,
            "loss.encoder_side_weight": 1.0,
            "loss.codebook_side_weight": 0.25,
            "loss.auxiliary_weight": 0.0,
        }
        common["tokenizer"]["words"] = {"adjectives": 5078, "nouns": 5403, "adverbs": 1872, "verbs": 9267}
    else:
        adam = {"lr": 1e-4, "end_lr": 1e-5, "warmup_steps": 10000, "betas": [0.9, 0.999]}
        common |= {
            f"{section}.{key}": value
            for section in ("optimizer", "discriminator_optimizer")
            for key, value in adam.items()
        }
        common |= {
            "loss.reconstruction": "l2",
            "loss.reconstruction_weight": 4.0,
            "loss.perceptual.kind": "convnext",
            "loss.perceptual.weight": 0.1,
            "loss.adversarial.generator_weight": 0.01,
            "loss.adversarial.feature_matching_weight": 0.04,
            "loss.adversarial.discriminator_weight": 0.01,
            "loss.adversarial.start_step": 20000,
            "discriminator.base_channels": 64,
            "discriminator.num_layers": 3,
            "train.mixed_precision": "bf16",
        }
    config = to_dict(load_config(ROOT / "configs" / f"{file}.yaml"))
    for key, value in (common | expected).items():
        found = config
        for part in key.split("."):
            found = found[part]
        assert found == value, key


def test_generator_s_configuration_carries_the_numbers_of_the_release():
    run = load_config(ROOT / "configs" / "generator" / "ucf101.yaml")
    body, optimizer = run.generator, run.optimizer
    assert (body.dim, body.num_layers, body.num_heads, body.positions) == (1536, 24, 16, "learned")
    assert not body.qk_norm and not body.tied_head
    assert (optimizer.lr, optimizer.end_lr, optimizer.warmup_steps) == (1e-4, 1e-5, 40000)
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ((0.9, 0.96), 1e-8, 0.03)
    assert (optimizer.decay_rule, optimizer.max_grad_norm, run.loss.label_smoothing) == ("release", 1.0, 0.1)
    train = run.train
    assert (train.max_steps, train.global_batch_size, train.mixed_precision) == (4_000_000, 32, "fp16")
    assert (train.ema_decay, train.seed) == (0.999, 42)


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("stage", "override", "wording"),
    [
        ("stage1", "proxy={work}/nowhere", "nowhere"),
        ("stage1", "proxy={work}/prior", "holds no config.json"),
        ("stage1", "tokenizer.proxy.num_codes=32", "tokenizer.proxy.num_codes is 32, but the proxy at"),
        ("stage1", "prior={work}/nowhere", "no complete prior in"),
        ("stage1", "init={work}/nowhere.bin warm_start=false", "no initial weights at"),
        ("stage2", "tokenizer={work}/nowhere", "nowhere"),
        ("stage2", "tokenizer={work}/proxy/final", "expected 'SweetTok'"),
        ("stage2", "data.train={work}/nowhere.txt", "nowhere.txt"),
        ("generator", "data.train={work}/nowhere", "expected a folder of tokens"),
        ("generator", "data.train={work}/clips", "is no manifest of tokens"),
        ("generator", "generator.num_classes=5", "num_classes is 5, but the token shards"),
        ("generator", "generator.layout.nouns=3", "generator.layout is"),
        ("generator", "generator.given_frames=3", "given_frames is 3, but the token shards"),
        ("generator", "generator.tokenizer_hash=abc", "tokenizer_hash is abc, but"),
        ("generator", "tokenizer=null", "samples need a tokenizer"),
        ("generator", "tokenizer={work}/nowhere", "nowhere"),
    ],
)
def test_mistakes_are_reported_in_one_line(runs, tmp_path, capsys, stage, override, wording):
    overrides = override.format(work=runs).split()
    assert command(["train", str(runs / f"{stage}.yaml"), f"train.output_dir={tmp_path / 'out'}", *overrides]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and wording in message and message.count("\n") == 1
    assert not (tmp_path / "out").exists()
