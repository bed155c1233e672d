"""The tracker finds the object of a synthetic clip, its colour and its motion, by rules alone."""

import numpy as np
import torch

from sweettok.data.synthetic import CLASSES, COLORS, GROUND_COLORS, _scene
from sweettok.eval.tracker import _palette, center, to_lab, track, wrapped

FRAMES, SIZE, SEED = 17, 64, 7
LEAST = 33  # L*a*b* distance at which an object stands out from its ground


def scenes(count: int):
    """(class, scene) of clips whose object stands out from the ground by its colour."""
    names, palette = _palette()
    grounds = dict(zip(GROUND_COLORS, palette[len(COLORS) :], strict=True))
    objects = dict(zip(names, palette[: len(COLORS)], strict=True))
    index = 0
    while count:
        label, scene = _scene(index, SEED)
        index += 1
        distance = np.linalg.norm(objects[scene.color][:, None] - grounds[scene.ground][None], axis=-1).min()
        if distance >= LEAST:
            count -= 1
            yield CLASSES[label], scene


def test_colour_and_motion_of_originals():
    """At least 99% of 100 clips."""
    found = [(track(scene.draw(FRAMES, SIZE, SIZE)), name, scene) for name, scene in scenes(100)]
    assert sum(tracked.color == scene.color for tracked, _, scene in found) >= 99
    assert sum(tracked.motion() == name for tracked, name, _ in found) >= 99
    assert {name for _, name, _ in found} == set(CLASSES)


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
