"""The tracker finds the object of a synthetic clip, its colour and its motion, by rules alone."""

import json

import numpy as np
import tiny
import torch

from sweettok.cli.main import main
from sweettok.data.synthetic import CLASSES, COLORS, GROUND_COLORS, VISIBLE, indexed_scene
from sweettok.data.synthetic_files import write_synthetic
from sweettok.eval.motion import match
from sweettok.eval.tracker import _palette, center, to_lab, track, wrapped

FRAMES, SIZE, SEED = 17, 64, 7
LEAST = 33  # L*a*b* distance at which an object stands out from its ground


def test_objects_have_colours_that_stand_out_from_the_ground():
    names, palette = _palette()
    for ground, shades in zip(GROUND_COLORS, palette[len(COLORS) :], strict=True):
        distances = [np.linalg.norm(color[:, None] - shades[None], axis=-1).min() for color in palette[: len(COLORS)]]
        assert VISIBLE[ground] == tuple(n for n, distance in zip(names, distances, strict=True) if distance >= LEAST)


def test_colour_and_motion_of_originals():
    """At least 99% of 100 clips."""
    scenes = [indexed_scene(index, SEED) for index in range(100)]
    found = [(track(scene.draw(FRAMES, SIZE, SIZE)), CLASSES[label], scene) for label, scene in scenes]
    assert sum(tracked.color == scene.color for tracked, _, scene in found) >= 99
    assert sum(tracked.motion() == name for tracked, name, _ in found) >= 99


def test_a_shifted_object_is_no_longer_near():
    video = indexed_scene(0, SEED)[1].draw(FRAMES, SIZE, SIZE)
    original = track(video)
    assert match(original, original).near == 1 and match(original, original).color
    assert match(original, track(video.roll(1, 2))).near == 1  # one pixel down
    shifted = match(original, track(video.roll((2, 2), (2, 3))))
    assert shifted.near == 0 and np.allclose(shifted.errors, 8**0.5)


def test_command(tmp_path, capsys):
    """The report of an untrained tokenizer: its originals are right, its reconstructions are not."""
    clips = write_synthetic(tmp_path / "clips", num_train=0, num_val=3, frames=9, size=16)
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    command = ["eval", "motion", "--checkpoint", str(tmp_path / "model"), "--data", str(clips / "val.txt")]
    assert main([*command, "--out", str(tmp_path / "motion.json")]) == 0
    assert "reconstructed motion, 3 clips" in capsys.readouterr().out
    report = json.loads((tmp_path / "motion.json").read_text())
    assert [clip["class"] for clip in report["results"]["clips"]] == list(CLASSES[:3])
    assert report["results"]["scores"]["near"]["mean"] < 0.5
    assert main([*command, "--fake", str(tmp_path)]) == 2
    assert "give --fake and --train together" in capsys.readouterr().err


def test_a_clip_without_an_object_has_no_motion():
    low, high = GROUND_COLORS["water"]
    weights = torch.linspace(0, 1, SIZE)[:, None, None]
    ground = torch.tensor(low) + weights * (torch.tensor(high) - torch.tensor(low))
    video = (ground * 255).round().byte().permute(2, 0, 1)[:, None, :, None, 0].expand(3, FRAMES, SIZE, SIZE)
    tracked = track(video)
    assert not tracked.found.any() and tracked.motion() is None


def test_the_center_of_a_region_that_crosses_an_edge():
    mask = np.zeros((10, 20), bool)
    mask[[9, 0], 4:7] = True
    row, column = center(mask)
    assert abs(wrapped(np.array([row + 0.5, 0]), (10, 20))[0]) < 1e-6 and abs(column - 5) < 1e-6


def test_lab():
    """White, and a grey, have no colour; lightness of white is 100."""
    lab = to_lab(np.array([[1.0, 1.0, 1.0], [0.5, 0.5, 0.5]]))
    np.testing.assert_allclose(lab[0], [100, 0, 0], atol=0.02)
    assert np.abs(lab[1, 1:]).max() < 0.02
