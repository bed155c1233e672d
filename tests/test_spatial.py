"""Images: the spatial branch alone, its training, stage 1 from it; and what whole tokenizers make of images."""

import os
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from stages import ROOT, begin, config_of, log_lines, make_task, snapshot

from sweettok.generator.sequence import SequenceLayout
from sweettok.losses.config import QuantizerLossConfig
from sweettok.pixels import to_float
from sweettok.stages.codes import CodePredictor
from sweettok.stages.spatial import SpatialTask
from sweettok.stages.stage1 import Stage1Task, start_from
from sweettok.tokenizer.layout import TokenLayout
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.release import TOKENIZER
from sweettok.train.step import Clock, train_step

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

PRETRAINED = "spatial/final"  # in the folder of runs: what the script exports
CONFIGS = {"release": tiny.tokenizer_config, "union": tiny.union_config}


def spatial_branch(config=None, seed: int = 0) -> SweetTok:
    return tiny.fill(SweetTok(config or tiny.tokenizer_config(), tiny.prior().spatial), seed)


def images(*seeds: int) -> torch.Tensor:
    """(B, 3, 16, 16)."""
    return tiny.clips(*seeds)[:, :, 0]


# ---------------------------------------------------------------------------------------------------- ids of an image


@pytest.mark.parametrize("recipe", CONFIGS)
def test_ids_of_an_image_are_the_spatial_ones_of_its_still_clip(recipe):
    """In the paper's recipe, where the spatial branch reads the first frame of a clip alone."""
    model, image = tiny.tokenizer(CONFIGS[recipe](spatial_source="first_frame")), images(0, 1, 2)
    out = model.encode(image)
    clip = model.encode(image[:, :, None].expand(-1, -1, 9, -1, -1))
    assert out.layout == model.layout.spatial and out.ids.shape == (3, out.layout.length)
    assert torch.equal(out.ids, clip.ids[:, : out.layout.length])
    assert out.words() == {"spatial": clip.words()["spatial"], "temporal": []}
    assert len({tuple(row) for row in out.ids.tolist()}) == 3


@pytest.mark.parametrize("recipe", CONFIGS)
@pytest.mark.parametrize("make", [tiny.tokenizer, spatial_branch])
def test_images_come_back(recipe, make):
    model, image = make(CONFIGS[recipe](pixel_path="argmax")), images(0, 1, 2)
    out = model.encode(image)
    logits = model.predict(image).logits
    assert logits.shape == (3, 32, 1, 4, 4)
    video = model.decode(out.ids)
    assert video.shape == (3, 3, 1, 16, 16)
    assert torch.equal(video, model.pixel_decoder(model.pixel_decoder.codebook(logits.argmax(1))).clamp(-0.5, 0.5))
    assert torch.equal(model(image), video) and torch.equal(model(image[:, :, None]), video)
    assert torch.equal(model.decode(out.ids, num_frames=1), video)
    for row in range(3):
        assert torch.equal(model.encode(image[row : row + 1]).ids, out.ids[row : row + 1])
        torch.testing.assert_close(model.decode(out.ids[row : row + 1]), video[row : row + 1], rtol=0, atol=1e-5)
    codes, motion = model.codes(out.ids)
    assert motion is None and torch.equal(codes, model.quantize(to_clips(image))[0].output)


def to_clips(image):
    return image[:, :, None]


def test_bytes_and_floats_of_an_image_agree():
    model = spatial_branch()
    image = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (2, 3, 16, 16), dtype=np.uint8))
    assert torch.equal(model.encode(image).ids, model.encode(to_float(image)).ids)


def test_the_branch_alone_and_the_whole_tokenizer_agree():
    whole, branch, image = tiny.tokenizer(), spatial_branch(), images(0, 1)
    assert branch.state_dict().keys() < whole.state_dict().keys()
    for name, value in branch.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    assert branch.layout == whole.layout.spatial
    assert torch.equal(branch.encode(image).ids, whole.encode(image).ids)
    assert torch.equal(branch(image), whole(image))


def test_layout_of_an_image():
    layout = TokenLayout()
    image = layout.spatial
    assert (image.length, image.vocab_size) == (768, 5078 + 5403)
    assert image.segments == layout.segments[:2] and image.spatial == image
    assert image.bits == pytest.approx(512 * np.log2(5078) + 256 * np.log2(5403))
    assert replace(layout, lookup="union").spatial.length == 256
    ids = torch.stack([image.to_global(torch.zeros(1, 768, dtype=torch.long))[0]] * 2)
    assert [part.shape for part in image.split(image.to_local(ids)).values()] == [(2, 256, 2), (2, 256, 1)]
    with pytest.raises(ValueError, match="this one is of images"):
        SequenceLayout(image)


def test_what_does_not_fit_is_refused():
    model, branch = tiny.tokenizer(), spatial_branch()
    ids = model.encode(images(0)).ids
    with pytest.raises(ValueError, match="12 ids are those of an image, of 1 frame; got num_frames=9"):
        model.decode(ids, num_frames=9)
    with pytest.raises(ValueError, match="id 11 at position 0 of clip 0 is no adjective: those are 0..10"):
        model.decode(torch.cat((torch.tensor([[11]]), ids[:, 1:]), dim=1))
    with pytest.raises(ValueError, match="frames are 32x16, but this tokenizer's"):
        model.encode(torch.zeros(1, 3, 32, 16))
    for take in (branch.encode, branch, branch.predict):
        with pytest.raises(ValueError, match="takes images: clips of 1 frame; got 9 frames. Stage 1 makes"):
            take(tiny.clip())
    with pytest.raises(ValueError, match=r"must have shape \(batch >= 1, 12\), got \(1, 60\)"):
        branch.decode(model.encode(tiny.clip()).ids)


@pytest.mark.parametrize("recipe", CONFIGS)
def test_the_branch_alone_is_saved_and_read(tmp_path, recipe):
    model, image = spatial_branch(CONFIGS[recipe]()), images(0, 1)
    model.save_pretrained(tmp_path)
    again = SweetTok.from_pretrained(tmp_path)
    assert again.config == model.config and again.prior.words == tiny.prior().spatial.words
    assert torch.equal(again.encode(image).ids, model.encode(image).ids) and torch.equal(again(image), model(image))
    assert again.ids_hash() == model.ids_hash() != tiny.tokenizer(CONFIGS[recipe]()).ids_hash()


# ----------------------------------------------------------------------------------------------------------- training


def test_every_parameter_learns():
    """Data parallelism allows no parameter without a gradient; of a convolution in time, the present has one."""
    predictor = CodePredictor(spatial_branch(tiny.tokenizer_config(pixel_path="none")), QuantizerLossConfig()).train()
    logits, terms = predictor(to_clips(images(0, 1)))
    (logits.logsumexp(1).mean() + logits[:, 0].mean() + sum(terms.values())).backward()
    still = [name for name, param in predictor.named_parameters() if param.grad is None or not param.grad.any()]
    assert not still


def test_what_the_stage_trains_and_logs(runs):
    lines = log_lines(runs / "spatial")
    assert {"train/code_accuracy", "train/usage/adjective", "train/dead/noun"} <= lines[0].keys()
    assert not [name for name in lines[0] if "adverb" in name or "auxiliary" in name]
    assert {"eval/code_loss", "eval/psnr"} <= log_lines(runs / "spatial", "eval/")[0].keys()
    model, task = SweetTok.from_pretrained(runs / PRETRAINED), SpatialTask(config_of(runs, "spatial"))
    assert model.temporal_quantizer is None and model.config.pixel_path == "argmax"
    assert model.state_dict().keys() == task.model.state_dict().keys()
    assert task.train_dataset[0]["video"].shape == (3, 1, 32, 32)


def test_loss_falls(runs):
    run = config_of(runs, "spatial", "optimizer.lr=3e-3", "tokenizer.graph_dropout=0", "train.max_steps=60")
    session, batches = begin(make_task(SpatialTask, run), run)
    losses = [train_step(session, batches, Clock()).scalars["code_loss"][0].item() for _ in range(60)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_images_of_a_folder(runs, tmp_path):
    rng = np.random.RandomState(0)
    for number in range(5):
        path = tmp_path / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.randint(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    run = config_of(runs, "spatial", f"data.train={tmp_path}", f"data.validation={tmp_path}")
    task = SpatialTask(run)
    assert len(task.train_dataset) == len(task.validation_dataset) == 5
    session, batches = begin(task, run)
    assert torch.isfinite(train_step(session, batches, Clock()).scalars["code_loss"][0])


# ------------------------------------------------------------------------------------------------------------ stage 1


def test_stage1_starts_from_the_branch(runs, tmp_path):
    """From the folder and from a file of the published names alike; everything else is as it is without."""
    run, pretrained = config_of(runs, "stage1", "warm_start=false"), runs / PRETRAINED
    branch = SweetTok.from_pretrained(pretrained)
    released = branch.to_release()
    torch.save(released, tmp_path / "spatial_pretrain.bin")
    fresh = snapshot(make_task(Stage1Task, run).model)
    for path in (pretrained, tmp_path / "spatial_pretrain.bin"):
        started = snapshot(make_task(Stage1Task, replace(run, init=str(path))).model)
        for name, value in started.items():
            part = branch.state_dict().get(name) if not name.startswith("pixel_decoder.") else None
            assert torch.equal(value, fresh[name] if part is None else part), name
    names = {name for name in branch.state_dict() if not name.startswith("pixel_decoder.")}
    assert {TOKENIZER.released_name(name) for name in names} - {None} <= released.keys()
    assert not [name for name in released if "temporal" in name or name.startswith("pixel_")]
    # The published files of whole tokenizers have every one of these names, in these shapes.
    whole = SweetTok.from_pretrained(runs / "stage1" / "final").to_release()
    assert {name: value.shape for name, value in released.items()}.items() <= {
        name: value.shape for name, value in whole.items()
    }.items()


def test_warm_start_fits_what_init_leaves(runs):
    pretrained = runs / PRETRAINED
    branch = SweetTok.from_pretrained(pretrained).state_dict()
    cold = make_task(Stage1Task, config_of(runs, "stage1", f"init={pretrained}", "warm_start=false")).model.state_dict()
    warm = make_task(Stage1Task, config_of(runs, "stage1", f"init={pretrained}")).model.state_dict()
    changed = {name for name in warm if not torch.equal(warm[name], cold[name])}
    assert changed == {
        "encoder.temporal_out.2.bias",
        "temporal_quantizer.codebook.conv2.lin.weight",
        "temporal_quantizer.codebook.conv2.bias",
    }
    assert all(torch.equal(warm[name], value) for name, value in branch.items())


def test_other_words_and_sizes_are_refused(tmp_path):
    model, branch = tiny.tokenizer(), spatial_branch()
    prior = tiny.prior()
    words = replace(prior.spatial, heads=(*prior.spatial.heads[:-1], "other"))
    tiny.fill(SweetTok(tiny.tokenizer_config(), words)).save_pretrained(tmp_path / "words")
    with pytest.raises(ValueError, match="was trained with other spatial words: use the same prior"):
        start_from(model, str(tmp_path / "words"))
    spatial_branch(tiny.tokenizer_config(head_hidden=12)).save_pretrained(tmp_path / "sizes")
    with pytest.raises(ValueError, match="is of other sizes than tokenizer: 3 entries differ, as decoder.head.1.bias"):
        start_from(model, str(tmp_path / "sizes"))
    with pytest.raises(FileNotFoundError, match="no initial weights at .*: train them with run_train_spatial.sh"):
        start_from(model, str(tmp_path / "nowhere"))
    branch.save_pretrained(tmp_path / "branch")
    assert start_from(model, str(tmp_path / "branch")).keys() < model.state_dict().keys()


@pytest.mark.parametrize(
    ("environment", "arguments", "made", "expected"),
    [
        ({}, [], False, ["configs/stage1/ucf101.yaml"]),
        ({}, ["init=mine"], True, ["configs/stage1/ucf101.yaml", "init=outputs/spatial-ucf101/final", "init=mine"]),
        ({}, [], True, ["configs/stage1/ucf101.yaml", "init=outputs/spatial-ucf101/final"]),
        ({"CONFIG": "my.yaml"}, [], True, ["my.yaml"]),
        ({"CONFIG": "my.yaml", "SPATIAL": "there"}, ["a=1"], True, ["my.yaml", "init=there", "a=1"]),
    ],
)
def test_run_script_uses_the_branch_when_it_is_there(tmp_path, environment, arguments, made, expected):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "run_train_stage1.sh").write_bytes((ROOT / "run_train_stage1.sh").read_bytes())
    (tmp_path / "scripts" / "launch.sh").write_text('printf "%s\\n" "$@"\n')
    if made:
        (tmp_path / "outputs" / "spatial-ucf101" / "final").mkdir(parents=True)
    kept = {name: value for name, value in os.environ.items() if name not in ("CONFIG", "SPATIAL")}
    command = ["bash", str(tmp_path / "run_train_stage1.sh"), *arguments]
    done = subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["-m", "sweettok", "train", *expected]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ["configs/stage2/ucf101.yaml"]),
        ({"CONFIG": "my.yaml"}, ["my.yaml"]),
        ({"CONFIG": "my.yaml", "STAGE1": "a b"}, ["my.yaml", "tokenizer=a b"]),
    ],
)
def test_run_script_of_stage_2_takes_the_tokenizer_of_the_configuration_unless_told(tmp_path, environment, expected):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "run_train_stage2.sh").write_bytes((ROOT / "run_train_stage2.sh").read_bytes())
    (tmp_path / "scripts" / "launch.sh").write_text('printf "%s\\n" "$@"\n')
    kept = {name: value for name, value in os.environ.items() if name not in ("CONFIG", "STAGE1")}
    command = ["bash", str(tmp_path / "run_train_stage2.sh"), "train.seed=1"]
    done = subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["-m", "sweettok", "train", *expected, "train.seed=1"]
