"""The joint stage of VTok: who learns from what, what is saved, and the commands that use the result."""

import json
import math

import pytest
import tiny_language as tiny
import torch
from stages import STEPS, begin, build_task, command, config_of, first_batch, log_lines, make_task
from test_vtok_diffusers import hunyuan

from sweettok.data.reader import read_clip
from sweettok.stages import load_config
from sweettok.stages.vtok import JointLoss, JointTask
from sweettok.train.step import Clock, train_step
from sweettok.train.task import StepContext
from sweettok.vtok.config import VTokConfig
from sweettok.vtok.language import VideoLanguageModel
from sweettok.vtok.language_config import TEMPLATES
from sweettok.vtok.model import VTok

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
CONTEXT = StepContext(0, 42, 0, 4, 4)


def make(runs, *overrides):
    return make_task(build_task, config_of(runs, "vtok", *overrides))


def backward(task, batch=None, context=CONTEXT):
    """Gradients of a step: names of the parameters that have some."""
    ((_, loss, report),) = task.losses(batch or first_batch(task), context)
    loss.backward()
    return {name for name, param in task.model.named_parameters() if param.grad is not None and param.grad.any()}


def test_everything_but_tokenizer_and_decoder_is_trained(runs):
    task = make(runs)
    every = {name for name, _ in task.model.named_parameters()}
    frozen = {name for name in every if name.startswith(("parts.tokenizer", "parts.decoder"))}
    waiting = {"motion_mlp.0.weight", "motion_mlp.0.bias"}  # for the layer after them, which starts at zero
    assert frozen and backward(task) == every - frozen - waiting
    assert {id(p) for p in task.trained["generator"].parameters} == {
        id(p) for name, p in task.model.named_parameters() if name not in frozen
    }


def test_the_decoder_s_loss_comes_every_so_many_steps(runs):
    task = make(runs, "decoder.every=2")
    for step, has in ((0, False), (1, True)):
        ((_, loss, report),) = task.losses(first_batch(task), StepContext(step, 42, 0, 4, 4))
        assert ("decoder_loss" in report) == has and {"answer_loss", "visual_loss"} <= report.keys()
        task.model.zero_grad()
        loss.backward()
        adapter = task.model.parts["adapter"].up.weight.grad
        assert adapter is not None and bool(adapter.any()) == has  # a gradient in any case, as data parallelism needs


def test_metrics_of_held_out_clips(runs):
    """Accuracy of each skill, which equals that of greedy answers, and the visual loss beside that of the mean."""
    (line,) = log_lines(runs / "vtok", "eval/")
    assert {"eval/accuracy", "eval/accuracy/motion", "eval/answer_loss", "eval/visual_loss"} <= line.keys()
    assert 0.3 < line["eval/visual_loss_of_the_mean"] < 5 and math.isfinite(line["eval/visual_loss"])
    task = make(runs)
    task.model.eval()
    batch = task.validation_dataset.collate([task.validation_dataset[row] for row in range(3)])
    for name, value in task.model.named_parameters():
        if "embed_tokens" in name:  # so that answers differ and some are right
            value.data.mul_(3)
    right = task.validate(batch)["accuracy"]
    clips = task.validation_dataset.groups.clips
    found = [task.model.answer(clips.tokens(range(row, row + 1)), "up or no?", max_new_tokens=3) for row in range(3)]
    assert right.tolist() == [float(answer == ("up", "no")[row % 2]) for row, answer in enumerate(found)]


def test_projection_is_trained_through_inputs_alone(runs, tmp_path):
    """g before pooling: its gradients come from all losses; the targets are detached; the saved tokenizer has it."""
    about = json.loads((runs / "vtok_encoder" / "final" / "config.json").read_text())["config"]
    torch.manual_seed(0)
    changed = {"architecture": about["architecture"], "grid": [2, 2], "projection": "patch_mlp", "pretrained": None}
    VTok(VTokConfig(**changed)).save_pretrained(tmp_path / "tokenizer")
    more = [f"tokenizer={tmp_path / 'tokenizer'}", "train_projection=true", f"train.output_dir={tmp_path / 'run'}"]
    assert command(["train", str(runs / "vtok.yaml"), *more, "optimizer.lr=0.01", "train.sample_every=0"]) == 0
    saved = VideoLanguageModel.from_pretrained(tmp_path / "run" / "final")
    old, new = VTok.from_pretrained(tmp_path / "tokenizer"), saved.parts["tokenizer"]
    assert new.projection.leave.weight.any() and not old.projection.leave.weight.any()
    assert all(a.equal(b) for a, b in zip(old.encoder.parameters(), new.encoder.parameters(), strict=True))
    task = make(runs, *more)
    batch = first_batch(task)
    module = task.trained["generator"].module
    assert module.values(batch).shape == batch["values"].shape
    torch.testing.assert_close(module.values(batch), batch["values"])  # the same at the start
    inputs = make(runs, *more, "ratio=[1,0]").model.statistics  # are standardised without captions too
    assert inputs.count.min() > 0 and not inputs.fixed
    assert "parts.tokenizer.projection.leave.weight" in backward(task, batch)
    with pytest.raises(ValueError, match="train_projection needs a tokenizer of VTok with vtok.projection"):
        make(runs, "train_projection=true")


@pytest.mark.parametrize("unit", ["queries", "words"])
def test_words_of_a_sweettok_as_visual_tokens(runs, tmp_path, unit):
    more = [f"tokenizer={runs / 'stage2' / 'final'}", f"unit={unit}", "num_frames=5", f"data.features={tmp_path}"]
    more += ["decoder.kind=none", "decoder.path=null", "language.scratch.max_length=256"]
    task = make(runs, *more)
    batch = first_batch(task)
    assert "projector.0.weight" in backward(task, batch)
    task.export(tmp_path / "final", {})
    model, video = VideoLanguageModel.from_pretrained(tmp_path / "final"), runs / "scenes/videos/train_00000.mp4"
    tokens = model.source(video)
    torch.testing.assert_close(tokens.values[0], batch["values"][0])
    assert model.generate("a dot up", 4 / 24).tokens.kinds.equal(tokens.kinds)  # of the clip's length
    assert model.answer(video, "up or no?", ["up", "no"]) in ("up", "no")


@pytest.mark.parametrize(("config", "name"), [("llava_hunyuan", "llama3"), ("qwen_hunyuan15", "qwen")])
def test_full_size_configurations_have_their_models_templates(config, name):
    assert load_config(f"configs/vtok/{config}.yaml").language.template == TEMPLATES[name]


def test_held_out_losses_do_not_depend_on_the_batch(runs):
    task = make(runs, "language.head.kind=flow")
    task.model.eval()
    clips = task.validation_dataset
    part, whole = (task.validate(clips.collate([clips[i] for i in ids]))["visual_loss"] for ids in ([2], range(3)))
    torch.testing.assert_close(part, whole[2:])


def test_blind_models_see_nothing(runs):
    with pytest.raises(ValueError, match=r"set ratio=\[1,0\]"):
        config_of(runs, "vtok", "blind=true")
    task = make(runs, "blind=true", "ratio=[1,0]")
    batch = first_batch(task)
    assert batch["values"].shape[1] == 0 and task.tokens_per_clip == 0
    assert "accuracy" in (found := task.validate(batch)) and "visual_loss" not in found
    backward(task, batch)
    assert all(param.grad is not None for param in task.trained["generator"].parameters)


def test_overfits_eight_clips(runs, tmp_path):
    """Answers and visual tokens of the training clips are learned."""
    more = ["train.max_steps=80", "optimizer.lr=0.01", "train.global_batch_size=8", "decoder.kind=none"]
    run = config_of(runs, "vtok", *more, "decoder.path=null", "language.caption_dropout=0")
    task = make_task(JointTask, run)
    session, batches = begin(task, run)
    reports = [train_step(session, batches, Clock()) for _ in range(80)]
    first, last = ({key: float(value[0]) for key, value in r.scalars.items()} for r in (reports[0], reports[-1]))
    assert last["answer_loss"] < 0.3 * first["answer_loss"] and last["visual_loss"] < 0.8 * first["visual_loss"]


def test_a_published_decoder_and_adapters_are_not_saved(runs, tmp_path, monkeypatch):
    """LLaVA with LoRA in bf16 and HunyuanVideo, tiny: both are named; checkpoints hold what is trained."""
    from sweettok.vtok import parts
    from sweettok.vtok.hunyuan import HunyuanDecoder

    torch.manual_seed(0)
    tokenizer = tiny.train_tokenizer([*tiny.TEXTS, "up or no?", "a dot"], 280)
    tiny.text_model("llava_next", len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    opened = []

    class Tiny(HunyuanDecoder):
        @classmethod
        def from_pretrained(cls, source, dtype=None, **options):
            opened.append(source)
            return cls(hunyuan(), **options)

    monkeypatch.setitem(parts.PUBLISHED, "hunyuan", Tiny)
    language = [f"language.base={tmp_path / 'base'}", "language.dtype=bfloat16", "language.lora.rank=2"]
    decoder = ["decoder.kind=hunyuan", "decoder.path=the hub", "decoder.adapter_rms=0.1", "decoder.adapter_hidden=8"]
    more = [*language, *decoder, "train.sample_every=0", "train.mixed_precision=bf16"]
    assert command(["train", str(runs / "vtok.yaml"), *more, f"train.output_dir={tmp_path / 'run'}"]) == 0
    assert opened == ["the hub"]
    from safetensors.torch import load_file

    for file in (f"checkpoint-{STEPS}/model", f"checkpoint-{STEPS}/ema", "final/model"):
        saved = load_file(tmp_path / "run" / f"{file}.safetensors")
        names = [name for name in saved if name.startswith("backbone.")]
        assert names and all("lora_" in name for name in names), file
        assert "parts.adapter.up.weight" in saved and all(v.dtype == torch.float32 for v in saved.values()), file
    model = VideoLanguageModel.from_pretrained(tmp_path / "run" / "final")
    assert opened == ["the hub"]  # not before it is needed
    video = model.generate_video("a dot up", steps=1, frames=5, size=(32, 32))
    assert video.shape == (1, 3, 5, 32, 32) and opened == ["the hub"] * 2
    with pytest.raises(ValueError, match="language.dtype=bfloat16 is for frozen weights"):
        config_of(runs, "vtok", "language.dtype=bfloat16")
    with pytest.raises(ValueError, match="set decoder.adapter_rms, or language.state_layer"):
        make(runs, "decoder.adapter_rms=null", "language.state_layer=-2")


def test_commands_answer_generate_and_compare(runs, tmp_path, capsys):
    model, video = str(runs / "vtok" / "final"), str(runs / "scenes" / "videos" / "val_00000.mp4")
    asked = ["answer", video, "--checkpoint", model, "--question", "up or no?", "--options", "up", "no"]
    assert command(asked) == 0
    assert capsys.readouterr().out.strip() in (f"{video}: up or no? up", f"{video}: up or no? no")

    (tmp_path / "prompts.jsonl").write_text(
        '{"id": "one", "prompt": "a dot up"}\n{"id": "two", "prompt": "a dot no"}\n'
    )
    out = tmp_path / "made"
    make = ["generate", "--prompts", str(tmp_path / "prompts.jsonl"), "--checkpoint", model, "--out", str(out)]
    make += ["--steps", "2", "--cfg-scale", "1.5"]
    assert command(make) == 0
    assert read_clip(out / "two.mp4", 9, 32, "first").shape == (3, 9, 32, 32)
    one = (out / "two.mp4").read_bytes()
    (out / "two.mp4").unlink()
    assert command(make) == 0 and (out / "two.mp4").read_bytes() == one  # a function of seed, place and prompt
    assert command([*make, "--seed", "1"]) == 2 and "seed 0 instead of 1" in capsys.readouterr().err
    (tmp_path / "prompts.jsonl").write_text('{"id": "one", "prompt": "a dot no"}\n')
    assert command(make) == 2 and "holds videos of other prompts" in capsys.readouterr().err
    (out / "generated.json").unlink()
    assert command(make) == 2 and "no generated.json" in capsys.readouterr().err
    (tmp_path / "prompts.jsonl").write_text("")
    assert command(make) == 2 and "holds no prompts" in capsys.readouterr().err

    reports = [str(tmp_path / name) for name in ("seen.json", "blind.json")]
    ask = ["eval", "qa", "--checkpoint", model, "--data", str(runs / "told" / "val.txt")]
    assert command([*ask, "--out", reports[0]]) == 0
    assert command([*ask, "--blind", "--out", reports[1], "--batch-size", "2"]) == 0
    results = [json.loads((tmp_path / name).read_text())["results"] for name in ("seen.json", "blind.json")]
    assert all(r["accuracy"]["count"] == 3 and r["chance"] == 0.5 for r in results)
    assert len({clip["found"] for clip in results[1]["clips"]}) == 1  # the same question each time
    capsys.readouterr()
    assert command(["eval", "compare", *reports]) == 0
    assert "motion" in capsys.readouterr().out


def test_losses_do_not_depend_on_idle_parts(runs):
    task = make(runs, "ratio=[0,2]")
    batch = first_batch(task)
    assert len(batch["caption"]) == 8 and not len(batch["answers"])
    plain = task.model(batch).total
    torch.testing.assert_close(JointLoss(task.model, None)(batch).total, plain)
    assert backward(task, batch)
