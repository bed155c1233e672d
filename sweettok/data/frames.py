"""Frames of annotated clips with a caption each, for an image encoder that learns from pairs of image and text.

Letters: F frames of a clip, H W pixels, N ids of a caption.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sweettok.data.annotations import AnnotatedClips
from sweettok.data.questions import NUMBERS
from sweettok.data.scenes import COLOR_NAMES, RADII, SHAPE_NAMES, Scene

ROWS = ("top", "upper", "lower", "bottom")
COLUMNS = ("far left", "left", "right", "far right")
FACTS = (*COLOR_NAMES, *SHAPE_NAMES)
CHOICES = 32  # captions of a validation frame, one of them its own


def visible(scene: Scene, time: float) -> list[tuple[str, str, str, str]]:
    """Size, colour, shape and place of the objects that are seen at a time in [0, 1]."""
    found, times = [], np.array([time])
    for thing in scene.things:
        if not thing.shown(times)[0]:
            continue
        x, y = thing.centers(times)[0]
        size = min(RADII, key=lambda name: abs(math.log(RADII[name] / thing.radii(times)[0])))
        place = f"{ROWS[_cell(y)]} {COLUMNS[_cell(x)]}"
        found.append((size, thing.color_at(time), thing.shape, place))
    return found


def _cell(place: float) -> int:
    return min(max(int(place * 4), 0), 3)


def frame_caption(scene: Scene, time: float) -> str:
    """What is seen at a time in [0, 1]: "one object on sand: small red square upper far left"."""
    things = visible(scene, time)
    names = ", ".join(" ".join(thing) for thing in things)
    return f"{NUMBERS[len(things)]} object{'s' * (len(things) != 1)} on {scene.ground}: {names}"


def frame_facts(scene: Scene, time: float) -> list[float]:
    """1 for each of FACTS that is seen at a time in [0, 1], else 0."""
    seen = {word for thing in visible(scene, time) for word in thing[1:3]}
    return [float(fact in seen) for fact in FACTS]


class CaptionedFrames(Dataset):
    """Some frames of each clip, with captions made from the scene's record; without records, with that of the clip.

    An item is {"image": uint8 (F, 3, H, W), "text": int64 (F, N), "facts": float32 (F, 9), NaN without records, "key"}
    and "problem" if `pixels` gives it; for validation also "others": int64 (CHOICES - 1, N), captions of other clips.
    An index may be (epoch, index).

    Args:
        pixels: the clips of `annotated`.
        encode: from a caption to ids (N,).
        seed: frames are drawn by (seed, epoch, clip); None, for validation: they are evenly spaced.
    """

    def __init__(
        self,
        annotated: AnnotatedClips,
        pixels: Dataset,
        frames: int,
        encode: Callable[[str], Tensor],
        seed: int | None = None,
    ):
        self.annotated, self.pixels, self.frames, self.encode, self.seed = annotated, pixels, frames, encode, seed
        self._rows = {key: row for row, key in enumerate(annotated.clips.keys)}

    def __len__(self) -> int:
        return len(self.annotated)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        read = self.pixels[item]
        row, total = self._rows[read["key"]], read["video"].shape[1]
        places = np.linspace(0, total - 1, self.frames).round().astype(int).tolist()
        if self.seed is not None:
            places = sorted(random.Random(f"{self.seed} {epoch} {index} frames").sample(range(total), self.frames))
        times = [place / max(total - 1, 1) for place in places]
        found = {
            "image": read["video"][:, places].transpose(0, 1),
            "text": torch.stack([self.encode(self.caption(row, time)) for time in times]),
            "facts": torch.tensor([self._facts(row, time) for time in times]),
            "key": read["key"],
        }
        if self.seed is None:
            rng = random.Random(f"{row} others")
            others = [rng.randrange(len(self)) for _ in range(CHOICES - 1)]
            found["others"] = torch.stack([self.encode(self.caption(other, rng.random())) for other in others])
        return found | ({"problem": read["problem"]} if "problem" in read else {})

    def caption(self, row: int, time: float) -> str:
        """Of clip `row` at a time in [0, 1]."""
        scenes = self.annotated.scenes
        return self.annotated.captions[row] if scenes is None else frame_caption(scenes[row], time)

    def _facts(self, row: int, time: float) -> list[float]:
        scenes = self.annotated.scenes
        return [math.nan] * len(FACTS) if scenes is None else frame_facts(scenes[row], time)


class KeptClips(Dataset):
    """The items of a dataset of clips that start at fixed frames, each read once and kept in memory."""

    def __init__(self, clips: Dataset):
        self.clips, self._items = clips, {}

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        index = item[1] if isinstance(item, tuple) else item
        if index not in self._items:
            read = self.clips[item]
            if read.get("problem"):
                return read
            self._items[index] = read
        return self._items[index]
