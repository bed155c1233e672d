"""The stages of VTok's image encoder and video decoder: what they write, and what they learn."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stages import STEPS, VTOK, begin, build_task, config_of, first_batch, log_lines, make_task
from test_vtok_data import folder  # noqa: F401

from sweettok import PixelFlow, VTok
from sweettok.data.annotations import load_annotated
from sweettok.data.frames import FACTS, CaptionedFrames, KeptClips, frame_caption, frame_facts
from sweettok.data.scenes import Scene, Thing
from sweettok.stages.inputs import Inputs
from sweettok.train.step import Clock, train_step
from sweettok.vtok.config import VTokConfig
from sweettok.vtok.contrastive import CaptionIds, Pairs, contrastive_loss
from sweettok.vtok.text import train_tokenizer

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

MOVER = Thing("red", "square", "medium", "right", "turn", "blue", (0.5, 0.2))
SCENE = Scene((MOVER, Thing("green", "cross", "small", event="appear", place=(0.9, 0.9))), "sand")


# ------------------------------------------------------------------------------------------------------------ frames


def test_captions_of_frames_say_what_is_seen_then():
    assert frame_caption(SCENE, 0.0) == "one object on sand: medium red square top left"
    later = "two objects on sand: medium blue square top right, small green cross bottom far right"
    assert frame_caption(SCENE, 1.0) == later
    facts = dict(zip(FACTS, frame_facts(SCENE, 1.0), strict=True))
    assert {name for name, value in facts.items() if value} == {"blue", "square", "green", "cross"}


def test_items_are_frames_with_their_captions(folder, tmp_path):  # noqa: F811
    clips = load_annotated(folder / "train.txt")
    tokenizer = train_tokenizer([frame_caption(scene, 0.5) for scene in clips.scenes], 400)
    pixels, ids = (
        [{"video": torch.arange(25).expand(3, 4, 4, 25).movedim(3, 1), "key": key} for key in clips.clips.keys],
        CaptionIds(tokenizer, 32),
    )
    frames = CaptionedFrames(clips, pixels_of(pixels), 4, ids, seed=0)
    item = frames[3, 1]
    places = item["image"][:, 0, 0, 0].tolist()
    assert item["image"].shape == (4, 3, 4, 4) and sorted(set(places)) == places
    for place, text, facts in zip(places, item["text"], item["facts"], strict=True):
        caption = frame_caption(clips.scenes[1], place / 24)
        assert text.equal(ids(caption)) and tokenizer.decode(text, skip_special_tokens=True) == caption
        assert facts.tolist() == frame_facts(clips.scenes[1], place / 24)
    assert frames[3, 1]["image"].equal(item["image"])
    assert not all(frames[epoch, 1]["image"].equal(item["image"]) for epoch in range(4, 8))
    even = CaptionedFrames(clips, pixels_of(pixels), 4, ids)[1]
    assert even["image"][:, 0, 0, 0].tolist() == [0, 8, 16, 24] and even["others"].shape == (31, 32)


def pixels_of(items):
    class Pixels(torch.utils.data.Dataset):
        def __getitem__(self, item):
            return items[item[1] if isinstance(item, tuple) else item]

    return Pixels()


def test_kept_clips_are_read_once():
    read = []

    class Clips(torch.utils.data.Dataset):
        def __getitem__(self, item):
            read.append(item)
            return {"video": item, "problem": "damaged" if item[1] == 2 else ""}

    kept = KeptClips(Clips())
    assert kept[0, 1] is kept[5, 1] and [kept[n, 2]["video"] for n in (0, 1)] == [(0, 2), (1, 2)]
    assert read == [(0, 1), (0, 2), (1, 2)]


def test_the_contrastive_loss_by_hand():
    """Two groups of a clip with two frames; in the second one both captions are equal."""
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(2, 2, 3, generator=generator), dim=-1) for _ in range(2))
    ids = torch.tensor([[[1, 2], [1, 3]], [[4, 4], [4, 4]]])
    found = contrastive_loss(Pairs(image, text, torch.tensor(5.0), None), ids, 1)
    expected = []
    for number, target in enumerate((np.eye(2), np.full((2, 2), 0.5))):
        logits = 5 * (image[number] @ text[number].T).numpy().astype(np.float64)
        for side in (logits, logits.T):
            expected.append(-(target * (side - np.log(np.exp(side).sum(1, keepdims=True)))).sum(1).mean())
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-5)


# ------------------------------------------------------------------------------------------------------------ stages


def test_the_encoder_stage_writes_a_vtok(runs):
    work = runs / "vtok_encoder"
    lines = log_lines(work)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(math.isfinite(line[f"train/{name}_loss"]) for line in lines for name in ("contrastive", "readout"))
    (found,) = log_lines(work, "eval/")
    assert all(0 <= found[f"eval/{name}"] <= 1 for name in ("retrieval", "readout_accuracy", "readout_majority"))

    model = VTok.from_pretrained(work / "final")
    averaged = load_file(work / f"checkpoint-{STEPS}" / "ema.safetensors")
    for name, value in model.encoder.visual.state_dict().items():
        assert value.equal(averaged[f"clip.visual.{name}"]), name
    video = torch.randint(256, (1, 3, 9, 32, 32), dtype=torch.uint8)
    settings = VTokConfig(**{**VTOK, "pretrained": str(work / "final" / "model.safetensors")})
    assert VTok(settings).encode(video, 24).values.equal(model.encode(video, 24).values)


def test_the_decoder_stage_writes_a_decoder_with_statistics(runs):
    work = runs / "vtok_decoder"
    assert all(math.isfinite(line["train/loss/generator"]) for line in log_lines(work))
    (found,) = log_lines(work, "eval/")
    assert found["eval/flow_loss"] > 0 and found["eval/flow_loss_without_states"] > 0
    assert [path.name for path in (work / "samples").iterdir()] == ["00000003_0.mp4"]
    decoder, tokenizer = PixelFlow.from_pretrained(work / "final"), VTok.from_pretrained(runs / "vtok_encoder/final")
    clips = load_annotated(runs / "scenes" / "train.txt").clips
    tokens = tokenizer.encode(clips.paths)
    states = decoder.from_tokens(tokens)
    for kind in (0, 1):
        part = states[:, tokens.kinds == kind].flatten(0, 1)
        torch.testing.assert_close(part.mean(0), torch.zeros(16), atol=1e-3, rtol=0)
        torch.testing.assert_close(part.std(0, correction=0), torch.ones(16), atol=1e-3, rtol=0)
    assert decoder.sample(states[:2], 9, 32, steps=2).shape == (2, 3, 9, 32, 32)
    training = json.loads((work / "final" / "config.json").read_text())["training"]
    assert (training["stage"], training["steps"]) == ("vtok_decoder", STEPS)


def test_a_grid_of_states_must_be_that_of_the_tokenizer(runs):
    with pytest.raises(ValueError, match=r"state_grid \(3, 4\) must be the tokenizer's grid"):
        make_task(build_task, config_of(runs, "vtok_decoder", "decoder.state_grid=[3,4]"))


def test_held_out_losses_do_not_depend_on_the_batch(runs):
    task = make_task(build_task, config_of(runs, "vtok_decoder"))
    task.model.eval()
    batch = first_batch(task)
    whole = task.validate(batch)
    for number in range(4):
        part = {name: value[number : number + 1] for name, value in batch.items()}
        for name, values in task.validate(part).items():
            torch.testing.assert_close(values[0], whole[name][number])


def train(task, run, steps: int) -> list[float]:
    session, batches = begin(task, run)
    return [train_step(session, batches, Clock()).scalars["loss/generator"][0].item() for _ in range(steps)]


def test_the_encoder_learns_its_clips(runs):
    settings = ["train.global_batch_size=8", "loss.group=8", "optimizer.lr=5e-3", "optimizer.end_lr=5e-3"]
    settings += ["frames_per_clip=1", "num_frames=1"]
    run = config_of(
        runs,
        "vtok_encoder",
        *settings,
        "vtok.architecture.vision_cfg.layers=2",
        "text.layers=1",
        f"data.validation={runs / 'scenes' / 'train.txt'}",
    )
    task = make_task(build_task, run)
    losses = train(task, run, 40)
    assert np.mean(losses[-5:]) < 0.6 * losses[0]


def test_the_decoder_learns_its_clips(runs):
    run = config_of(
        runs,
        "vtok_decoder",
        "train.global_batch_size=8",
        "optimizer.lr=3e-3",
        "optimizer.end_lr=3e-3",
        "decoder.dim=32",
        "decoder.num_layers=2",
        "decoder.state_dropout=0",
    )
    task = make_task(build_task, run)
    task.model.eval()
    before = {name: value.mean().item() for name, value in task.validate(first_batch(task, 8)).items()}
    task.model.train()
    train(task, run, 60)
    task.model.eval()
    after = task.validate(first_batch(task, 8))["flow_loss"].mean().item()
    assert after < 0.5 * before["flow_loss"], (after, before)


def test_a_group_must_divide_the_clips_of_a_step(runs):
    run = config_of(runs, "vtok_encoder", "loss.group=3")
    task = make_task(build_task, run)
    with pytest.raises(ValueError, match="loss.group 3 does not divide the 4 clips"):
        next(task.losses(first_batch(task), None))


def test_other_clips_need_no_records(folder, tmp_path):  # noqa: F811
    """With captions alone, frames get those of their clips, and there are no facts."""
    (tmp_path / "videos").symlink_to(folder / "videos")
    for name in ("train.txt", "captions.jsonl"):
        (tmp_path / name).write_text((folder / name).read_text())
    found = Inputs().annotated(str(tmp_path / "train.txt"), type("Data", (), {"root": None}))
    frames = CaptionedFrames(
        found,
        pixels_of([{"video": torch.zeros(3, 5, 2, 2), "key": key} for key in found.clips.keys]),
        2,
        lambda text: torch.tensor([len(text)]),
    )
    assert frames[1]["text"].tolist() == [[len(found.captions[1])]] * 2 and frames[1]["facts"].isnan().all()
