"""Annotated clips, and their tokens from stored features."""

import json
import tarfile
from dataclasses import replace

import pytest
import tiny
import torch
from test_vtok import make

from sweettok.data.annotations import load_annotated
from sweettok.data.dataset import ClipDataset
from sweettok.data.lists import SUFFIXES
from sweettok.data.questions import solve
from sweettok.data.scene_files import write_scenes
from sweettok.data.shards import index_shards
from sweettok.stages.inputs import Inputs
from sweettok.stages.vtok_inputs import layout_of
from sweettok.vtok.datasets import TokenClips, TokenQuestions, open_features
from sweettok.vtok.sources import WordTokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("annotated") / "scenes", 3, 2, 25, 32)


def test_texts_and_records_are_those_of_their_clips(folder):
    found = load_annotated(folder / "val.txt")
    assert found.clips.keys == ("videos/val_00000", "videos/val_00001") and len(found) == 2
    for caption, asked, scene in zip(found.captions, found.questions, found.scenes, strict=True):
        assert all(thing.name in caption for thing in scene.things)
        assert asked and all(solve(question.text, scene) == question.answer for question in asked)
    assert {found.captions[1], found.questions[0][0].text, found.questions[0][0].answer} <= set(found.texts)


def test_annotations_that_do_not_fit(folder, tmp_path):
    lists = tmp_path / "train.txt"
    lists.write_text((folder / "train.txt").read_text())
    (tmp_path / "videos").symlink_to(folder / "videos")
    with pytest.raises(FileNotFoundError, match="captions.jsonl"):
        load_annotated(lists)
    (tmp_path / "captions.jsonl").write_text('{"key": "videos/train_00000", "text": "a"}\n')
    with pytest.raises(ValueError, match="2 clips have no caption"):
        load_annotated(lists)
    (tmp_path / "captions.jsonl").write_text((folder / "captions.jsonl").read_text())
    asked = {"key": "videos/train_00001", "skill": "size", "question": "?", "options": ["a", "b"], "answer": "b"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(asked) + "\n")
    found = load_annotated(lists)
    assert [len(group) for group in found.questions] == [0, 1, 0] and found.scenes is None
    (tmp_path / "questions.jsonl").write_text(json.dumps(asked | {"answer": "c"}) + "\n")
    with pytest.raises(ValueError, match=r"questions.jsonl, line 1: options .* the answer 'c'; got \['a', 'b'\]"):
        load_annotated(lists)
    (tmp_path / "questions.jsonl").write_text('{"key": "videos/train_00001"}\n')
    with pytest.raises(ValueError, match="questions.jsonl, line 1: it has no 'options'"):
        load_annotated(lists)


def test_videos_may_be_in_a_tar_shard(folder, tmp_path):
    pytest.importorskip("webdataset", reason='not installed: pip install -e ".[webdataset]"')
    model, clips = make(), load_annotated(folder / "val.txt").clips
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for path in clips.paths:
            tar.add(path, path.name)
    packed = replace(clips, paths=tuple(clip.member for clip in index_shards([str(tmp_path / "x.tar")], SUFFIXES)))
    found, plain = (open_features(model, each, tmp_path / str(n), 25)[1] for n, each in enumerate((packed, clips)))
    assert found.key.equal(plain.key) and found.residuals.equal(plain.residuals)


def test_processes_are_joined_before_features_are_written(folder, tmp_path, monkeypatch):
    """Otherwise each would write them."""
    calls = []
    for name in ("join_processes", "main_first"):
        monkeypatch.setattr(f"sweettok.vtok.datasets.{name}", lambda *_, name=name: calls.append(name))
    open_features(make(), load_annotated(folder / "train.txt").clips, tmp_path)
    assert calls == ["join_processes", "main_first"]


def test_items_are_the_tokens_texts_and_pixels_of_one_clip(folder, tmp_path):
    model, found = make(), load_annotated(folder / "train.txt")
    features = open_features(model, found.clips, tmp_path, max_frames=25)
    pixels = ClipDataset(found.clips, 25, (32, 32), "first", substitute=True)
    clips = TokenClips(model, found, features, pixels)
    item = clips[4, 1]
    direct = model.encode(found.clips.paths[1])
    torch.testing.assert_close(item["values"], direct.values[0], atol=2e-5, rtol=1e-5)
    assert item["kinds"].equal(direct.kinds) and item["times"].equal(direct.times[0])
    assert item["caption"] == found.captions[1] and item["video"].equal(pixels[1]["video"]) and item["problem"] == ""
    assert clips.tokens().values[1].equal(item["values"])

    asked = TokenQuestions(clips)
    assert len(asked) == sum(map(len, found.questions))
    last = asked[len(asked) - 1]
    assert last["values"].equal(clips[2]["values"]) and last["question"] == found.questions[2][-1].text
    assert last["answer"] == found.questions[2][-1].answer and "video" not in last


def test_a_replaced_clip_has_the_tokens_of_its_pixels(folder, tmp_path):
    model, found = make(), load_annotated(folder / "train.txt")
    features = open_features(model, found.clips, tmp_path)
    pixels = ClipDataset(found.clips, 25, (32, 32), "first", substitute=True)
    pixels._unreadable[0] = "damaged"
    item = TokenClips(model, found, features, pixels)[0]
    row = found.clips.keys.index(item["key"])
    assert row != 0 and item["problem"] == "damaged"
    assert item["caption"] == found.captions[row] and item["values"].equal(model.project(features[row]).values[0])


def test_features_of_others_are_refused(folder, tmp_path):
    model, found = make(), load_annotated(folder / "train.txt")
    features = open_features(model, found.clips, tmp_path)
    with pytest.raises(ValueError, match="give that VTok"):
        TokenClips(make(seed=1), found, features)
    with pytest.raises(ValueError, match="of other clips"):
        TokenClips(model, load_annotated(folder / "val.txt"), features)


@pytest.mark.parametrize("lookup", ["modifiers_and_head", "union"])
@pytest.mark.parametrize("unit", ["queries", "words"])
def test_a_plan_counts_the_words_that_are_read(unit, lookup):
    """The layout without clips is that of encoded ones."""
    source = WordTokens(tiny.tokenizer(tiny.tokenizer_config(lookup=lookup)), unit)
    config = source.tokenizer.config
    clip = torch.zeros(1, 3, config.num_frames, config.height, config.width, dtype=torch.uint8)
    tokens = source.encode(clip, fps=24.0)
    planned = layout_of(Inputs(), source, config.num_frames, 24.0)
    assert planned.kinds == tuple(tokens.kinds.tolist()) and planned.dim == tokens.values.shape[2]
