"""The scene tracker answers questions about drawn scenes by rules alone."""

import numpy as np
import pytest
import torch

from sweettok.data.questions import KINDS, make, solve, target
from sweettok.data.reader import read_clip
from sweettok.data.scenes import MOTIONS, Scene, Thing
from sweettok.data.writer import write_video
from sweettok.eval.scene_tracker import recognise


def test_answers_about_drawn_scenes():
    """At least 99% of 39 questions."""
    right = 0
    for index in range(39):
        scene, question = make(*target(index), np.random.default_rng([9, index]), held_out=True)
        right += solve(question.text, recognise(scene.draw(25, 64))) == question.answer
    assert right >= 0.99 * 39


@pytest.mark.parametrize("motion", MOTIONS)
def test_records_are_found_again(motion, tmp_path):
    """Also from a compressed file."""
    things = (
        Thing("red", "cross", "small", motion, "turn", "blue", (0.3, 0.3)),
        Thing("yellow", "triangle", "large", "still", "blink", "2", (0.7, 0.7)),
    )
    write_video(tmp_path / "clip.mp4", Scene(things, "water").draw(25, 64), 24, full_chroma=True)
    found = recognise(read_clip(tmp_path / "clip.mp4", 25, None))
    for thing in things:
        same = found.named(thing.name)
        assert np.allclose(same.place, thing.place, atol=0.02)
        names = ("color", "shape", "size", "motion", "event", "detail")
        assert [getattr(same, name) for name in names] == [getattr(thing, name) for name in names]


def test_other_clips_have_no_objects():
    assert recognise(Scene(()).draw(9, 32)).things == ()
    noise = torch.randint(0, 256, (3, 9, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert solve("What size is the red circle?", recognise(noise)) not in KINDS["size"].options[:1]
    with pytest.raises(ValueError, match="scenes are square, got a clip of"):
        recognise(noise[:, :, :16])
