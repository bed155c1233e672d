"""Synthetic clips: seeded, moving, described in words, and written so that an interrupted run can be completed."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from sweettok.cli.main import main
from sweettok.data import synthetic, synthetic_files
from sweettok.data.lists import load_clips, read_names
from sweettok.data.reader import probe, read_clip
from sweettok.data.synthetic import CLASSES, MOTIONS, PLAIN, indexed_scene, synthetic_clip
from sweettok.data.synthetic_files import write_synthetic
from sweettok.eval import tracker


def psnr(prediction: torch.Tensor, video: torch.Tensor) -> float:
    return float(10 * torch.log10(255**2 / (prediction.float() - video.float()).square().mean()))


@pytest.fixture(scope="module")
def clips():
    return [synthetic_clip(index, 17, 64, seed=1) for index in range(32)]


def track(clip: torch.Tensor, empty: torch.Tensor) -> tuple[float, float, float]:
    """How far an object moves to the right and down, in frame sizes, and the logarithm by which its area grows.

    `empty` is the clip without the object. Objects wrap around the frame's edges, so places are averaged on circles.
    """
    mask = ((clip.int() - empty.int()).abs().amax(0) > 12).float()
    moves = []
    for size, profile in zip(mask.shape[:0:-1], (mask.sum(1), mask.sum(2)), strict=True):
        angle = torch.polar(profile, torch.arange(size).expand_as(profile) * 2 * torch.pi / size).sum(1).angle()
        steps = torch.remainder(angle.diff() + torch.pi, 2 * torch.pi) - torch.pi
        moves.append(float(steps.sum()) / (2 * torch.pi))
    return *moves, float((mask[-1].sum() / mask[0].sum()).log())


def test_seeded_and_balanced(clips):
    again = synthetic_clip(5, 17, 64, seed=1)
    assert torch.equal(again.video, clips[5].video) and again.caption == clips[5].caption
    assert not torch.equal(synthetic_clip(5, 17, 64, seed=2).video, again.video)
    assert not torch.equal(clips[5].video, clips[13].video)
    assert Counter(clip.label for clip in clips) == dict.fromkeys(range(len(CLASSES)), 4)
    assert all(clip.class_name == CLASSES[clip.label] for clip in clips)


@pytest.mark.parametrize(("frames", "size"), [(1, (16, 16)), (5, (24, 40)), (3, (33, 17))])
def test_any_size_and_length(frames, size):
    clip = synthetic_clip(3, frames, size).video
    assert clip.shape == (3, frames, *size) and clip.dtype == torch.uint8 and clip.is_contiguous()


def test_longer_clips_begin_like_shorter_ones(clips):
    assert all(torch.equal(synthetic_clip(i, 24, 64, seed=1).video[:, :17], clips[i].video) for i in range(8))


def test_only_the_object_moves(clips):
    """Most pixels never change; a copy of the first frame is still far from the clip."""
    videos = [clip.video[:, :17] for clip in clips]
    still = [(video == video[:, :1]).all(0).all(0).float().mean() for video in videos]
    first = [psnr(video[:, :1].expand_as(video), video) for video in videos]
    assert 0.5 < sum(still) / len(still) < 0.9 and sum(first) / len(first) < 20


def test_textures_are_smooth(clips):
    """Neighbouring pixels are alike: most of what changes between them is below the noise of a good reconstruction."""
    steps = torch.stack([(c.video[..., 1:].int() - c.video[..., :-1].int()).abs().float().mean() for c in clips])
    assert steps.mean() < 14


def test_motion_is_what_the_class_says(monkeypatch):
    for index in range(24):
        _, scene = indexed_scene(index, 7)
        video = scene.draw(9, 48, 48)
        with monkeypatch.context() as patch:
            patch.setitem(synthetic.SHAPES, scene.shape, lambda u, v: 0 * u + 9)
            right, down, growth = track(video, scene.draw(9, 48, 48))
        directions = {
            "slide-left": -right,
            "slide-right": right,
            "rise": -down,
            "fall": down,
            "grow": growth / 2,
            "shrink": -growth / 2,
        }
        across = {"slide-left": down, "slide-right": down, "rise": right, "fall": right}
        assert directions.get(scene.motion, 1) > 0.1
        assert abs(across.get(scene.motion, 0)) < 0.02


def test_captions_are_tagged(clips):
    def said(*tables):
        return [synthetic.SYNONYMS[thing] for table in tables for thing in table]

    tables = {
        "adjective": said(synthetic.SIZES, synthetic.COLORS, synthetic.PATTERNS),
        "noun": said(synthetic.SHAPES, synthetic.GROUNDS),
        "adverb": (*said(synthetic.MANNERS), *(motion.adverbs for motion in MOTIONS.values())),
        "verb": tuple(motion.verbs for motion in MOTIONS.values()),
        "other": (("a", "an", "over"),),
    }
    lists = {kind: {word for words in group for word in words} for kind, group in tables.items()}
    # Within a word graph no word has two parts of speech, and none is said of two different things.
    assert not lists["adjective"] & lists["noun"] and not lists["adverb"] & lists["verb"]
    said_of_things = [word for words in synthetic.SYNONYMS.values() for word in words]
    assert len(said_of_things) == len(set(said_of_things))
    for clip in clips:
        words = clip.caption.words
        assert clip.caption.text == " ".join(word for word, _ in words)
        assert all(word in lists[kind] for word, kind in words)
        assert Counter(kind for _, kind in clip.caption.content) == {"adjective": 3, "noun": 2, "adverb": 2, "verb": 1}
        verb = next(word for word, kind in words if kind == "verb")
        assert verb in MOTIONS[clip.class_name].verbs


def test_plain_scenes():
    """Of few kinds, in the frame for 17 frames; held-out combinations are those of validation clips alone."""
    kept, trained = ([indexed_scene(index, 1, True, held)[1] for index in range(200)] for held in (True, False))
    pictures = [{(scene.ground, scene.color, scene.shape) for scene in scenes} for scenes in (kept, trained)]
    assert not pictures[0] & pictures[1] and len(pictures[0]) > 8
    assert all(getattr(scene, name) in words for scene in kept + trained for name, words in PLAIN.items())
    for scene in trained[:32]:
        found = tracker.track(scene.draw(17, 64, 64))
        assert found.motion() == scene.motion
        wraps = np.abs(np.diff(found.centers, axis=0)).max() > 32
        assert not wraps


def test_written_folder(tmp_path):
    out = write_synthetic(tmp_path / "set", num_train=10, num_val=6, frames=6, size=(32, 48), fps=8, seed=3)
    assert read_names(out / "classes.txt") == CLASSES
    train, val = (load_clips(out / f"{split}.txt", classes=out / "classes.txt") for split in ("train", "val"))
    assert (len(train), len(val)) == (10, 6)
    captions = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    assert [caption["key"] for caption in captions] == [*train.keys, *val.keys]
    assert not {caption["text"] for caption in captions[:10]} & {caption["text"] for caption in captions[10:]}
    for clips, first in ((train, 0), (val, 10)):
        for number, path in enumerate(clips.paths):
            drawn = synthetic_clip(first + number, 6, (32, 48), seed=3)
            info = probe(path)
            assert (info.num_frames, info.fps, info.height, info.width) == (6, 8.0, 32, 48)
            assert psnr(read_clip(path, 6, None), drawn.video) > 30
            assert path.parent.name == clips.class_names[clips.labels[number]] == drawn.class_name
            assert captions[first + number]["text"] == drawn.caption.text
            assert captions[first + number]["words"] == [list(pair) for pair in drawn.caption.content]


def test_a_second_call_draws_only_what_is_missing(tmp_path, monkeypatch):
    out = tmp_path / "set"
    options = {"num_train": 6, "num_val": 2, "frames": 3, "size": 16}
    drawn = []
    original = synthetic_files.write_video

    def stop_after(count):
        def write(path, *rest, **options):
            if len(drawn) == count:
                raise KeyboardInterrupt
            drawn.append(path)
            original(path, *rest, **options)

        monkeypatch.setattr(synthetic_files, "write_video", write)

    stop_after(5)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(out, **options)
    assert not (out / "train.txt").exists()
    stop_after(100)
    write_synthetic(out, **options)
    assert len(drawn) == len(set(drawn)) == 8
    load_clips(out / "train.txt")
    write_synthetic(out, **options)
    assert len(drawn) == 8
    with pytest.raises(ValueError, match="num_val 2 instead of 3"):
        write_synthetic(out, **{**options, "num_val": 3})


def test_command(tmp_path, capsys):
    out = str(tmp_path / "set")
    arguments = ["synthetic", out, "--num-train", "3", "--num-val", "1", "--frames", "3", "--size", "16"]
    assert main(["data", *arguments]) == 0
    assert capsys.readouterr().out.strip() == out
    assert main(["data", *arguments, "--seed", "1"]) == 2
    assert "seed 0 instead of 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "0"), "--size: expected a whole number of at least 8, got '0'"),
        (("--frames", "0"), "--frames: expected a whole number of at least 1, got '0'"),
        (("--num-train", "-1"), "--num-train: expected a whole number of at least 0, got '-1'"),
        (("--num-train", "0", "--num-val", "0"), "clips must be at least 1, got 0"),
        (("--fps", "0"), "--fps: expected a number above 0, got '0'"),
    ],
)
def test_nothing_is_not_drawn(tmp_path, capsys, options, message):
    assert main(["data", "synthetic", str(tmp_path / "set"), *options]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.rglob("*.mp4"))
    with pytest.raises(ValueError, match="height must be at least 8, got 0"):
        write_synthetic(tmp_path / "set", size=0)


def test_lists_of_others_are_not_replaced(tmp_path):
    (tmp_path / "val.txt").write_text("mine.mp4\n")
    with pytest.raises(ValueError, match="has a val.txt that is not of synthetic clips"):
        write_synthetic(tmp_path, num_train=1, num_val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["val.txt"]
