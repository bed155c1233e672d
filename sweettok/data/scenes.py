"""Scenes of several plain objects that move and change, for questions whose answers are known.

A scene is a record from which its clip is drawn, and its caption and answers (`sweettok.data.questions`) are made.
Times run from 0, the first frame, to 1, the last one, whatever the number of frames. Lengths are in frame sizes.
Objects never touch, and are never cut by the edge of the frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from sweettok.data.synthetic import COLORS, GROUND_COLORS, GROUND_DETAIL, GROUNDS, SHAPES, mix

FORMAT = 1  # raise it when a seed gives other scenes, captions or questions than before
LEAST_FRAMES = 7  # of a clip that shows every event

SHAPE_NAMES = ("circle", "square", "triangle", "cross")
COLOR_NAMES = ("red", "yellow", "green", "blue", "purple")
GROUND_NAMES = ("gravel", "stripes", "sand", "tiles", "water", "snow", "wood")  # all colours differ clearly from them
GROUND_CONTRAST = 0.5  # of the two colours of a ground, relative to synthetic clips
RADII = {"small": 0.08, "medium": 0.115, "large": 0.16}
HALF = 1.2  # half the edge of the square around any shape, in radii
GAP = 0.04  # least distance between the squares of two objects, and to the edge of the frame
LAYOUT_TIMES, TRIES = 25, 40  # at which objects must not touch; random places that are tried for an object

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = ("still", *DIRECTIONS, "up and down", "side to side", "in a circle")
TRAVEL = 0.4  # way of a straight motion
SWING, CYCLES = 0.12, 1.5  # half the way of a motion to and fro, and how often it is repeated
ORBIT = 0.13  # radius of a circular motion, which is one full turn

EVENTS = ("nothing", "turn", "grow", "shrink", "disappear", "appear", "blink")
GROWTH = 1.6  # factor on the radius
CHANGE = 0.5  # time of an event
BLINKS = {"1": (3 / 6,), "2": (1 / 6, 5 / 6), "3": (1 / 6, 3 / 6, 5 / 6)}  # times of the middles of blinks
BLINK = 1 / 12  # half the duration of a blink

# Combinations that training scenes never have; one for each colour.
HELD_OUT = {
    *(("red", "cross"), ("yellow", "square"), ("green", "circle"), ("blue", "triangle"), ("purple", "cross")),
}
COMBINATIONS = tuple((color, shape) for color in COLOR_NAMES for shape in SHAPE_NAMES)


@dataclass(frozen=True)
class Thing:
    """An object. `place`: x and y of the middle of its path. `detail`: the new colour, or the number of blinks."""

    color: str
    shape: str
    size: str
    motion: str = "still"
    event: str = "nothing"
    detail: str = ""
    place: tuple[float, float] = (0.5, 0.5)

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    def centers(self, times: ndarray) -> ndarray:
        """(T,) -> (T, 2), x and y at these times."""
        wave = SWING * np.sin(2 * math.pi * CYCLES * times)
        turn = 2 * math.pi * times
        if self.motion in DIRECTIONS:
            offsets = np.outer(TRAVEL * (times - 0.5), DIRECTIONS[self.motion])
        elif self.motion == "in a circle":
            offsets = ORBIT * np.stack((np.cos(turn), np.sin(turn)), axis=-1)
        else:
            moving = {"up and down": (0, 1), "side to side": (1, 0)}.get(self.motion, (0, 0))
            offsets = np.outer(wave, moving)
        return np.array(self.place) + offsets

    def radii(self, times: ndarray) -> ndarray:
        factor = {"grow": GROWTH, "shrink": 1 / GROWTH}.get(self.event, 1.0)
        return RADII[self.size] * factor ** np.clip((times - 0.25) / 0.5, 0, 1)

    def shown(self, times: ndarray) -> ndarray:
        """(T,) -> (T,) bool, whether it is seen."""
        if self.event == "blink":
            return np.abs(np.subtract.outer(times, BLINKS[self.detail])).min(1) >= BLINK - 1e-6
        hidden = {"disappear": times >= CHANGE, "appear": times < CHANGE}
        return ~hidden.get(self.event, np.zeros(len(times), bool))

    def color_at(self, time: float) -> str:
        return self.detail if self.event == "turn" and time >= CHANGE else self.color


@dataclass(frozen=True)
class Scene:
    """Objects over a ground that stands still. The first object is the subject of the scene's own question."""

    things: tuple[Thing, ...]
    ground: str = "snow"
    offset: tuple[float, float] = (0.0, 0.0)  # of the ground's texture

    def draw(self, frames: int, size: int) -> Tensor:
        """The clip as uint8 (3, frames, size, size)."""
        places = (np.arange(size, dtype=np.float32) + 0.5) / size
        y, x = np.meshgrid(places, places, indexing="ij")
        texture = GROUNDS[self.ground](self.offset[0] + GROUND_DETAIL * x, self.offset[1] + GROUND_DETAIL * y)
        ground = mix(*GROUND_COLORS[self.ground], 0.5 + GROUND_CONTRAST * (np.clip(texture, 0, 1) - 0.5))
        picture = np.repeat(ground[None], frames, axis=0).astype(np.float32)
        times = frame_times(frames)
        for thing in self.things:
            poses = zip(thing.centers(times), thing.radii(times), thing.shown(times), strict=True)
            for number, (center, radius, shown) in enumerate(poses):
                if not shown:
                    continue
                first, last = np.floor(np.stack((center - 1.4 * radius, center + 1.4 * radius)) * size).astype(int)
                box = tuple(slice(max(a, 0), max(b + 1, 0)) for a, b in zip(first[::-1], last[::-1], strict=True))
                cover = coverage(thing.shape, x[box] - center[0], y[box] - center[1], radius, size)[..., None]
                color = np.array(COLORS[thing.color_at(times[number])], dtype=np.float32)
                picture[number][box] += cover * (color - picture[number][box])
        return torch.from_numpy((picture * 255).round().astype(np.uint8)).permute(3, 0, 1, 2).contiguous()

    def named(self, name: str) -> Thing | None:
        """The only object of this colour and shape."""
        found = [thing for thing in self.things if thing.name == name]
        return found[0] if len(found) == 1 else None


def frame_times(frames: int) -> ndarray:
    return np.arange(frames) / max(frames - 1, 1)


def coverage(shape: str, dx: ndarray, dy: ndarray, radius: float, unit: float) -> ndarray:
    """Anti-aliased coverage of pixels at offsets from a shape's centre; `unit`: pixels of the length 1."""
    return np.clip(0.5 - SHAPES[shape](dx / radius, dy / radius) * radius * unit, 0, 1)


def sample(
    rng: np.random.Generator,
    held_out: bool = False,
    count: int | None = None,
    alike: int | None = None,
    **subject: Any,
) -> Scene:
    """A random scene.

    Args:
        held_out: whether the subject has a combination of HELD_OUT, and the others any; else nothing has.
        count: number of objects; by default 2 to 4.
        alike: number of objects with the subject's colour.
        subject: attributes that the subject must have.
    """
    while True:
        scene = _place(_things(rng, held_out, count or int(rng.integers(2, 5)), alike, subject), rng)
        if scene is not None:
            return scene


def _things(
    rng: np.random.Generator, held_out: bool, count: int, alike: int | None, subject: dict[str, Any]
) -> list[Thing]:
    def pick(values: Any) -> Any:
        values = list(values)
        return values[rng.integers(len(values))]

    known = [pair for pair in COMBINATIONS if pair not in HELD_OUT]
    fitting = [p for p in (sorted(HELD_OUT) if held_out else known) if subject.get("color", p[0]) == p[0]]
    pairs = [pick(pair for pair in fitting if subject.get("shape", pair[1]) == pair[1])]
    while len(pairs) < count:
        others = [pair for pair in (COMBINATIONS if held_out else known) if pair not in pairs]
        if alike is not None:
            same = len(pairs) < alike
            others = [pair for pair in others if (pair[0] == pairs[0][0]) == same]
        pairs.append(pick(others))
    eventful = rng.integers(1, count) if count > 1 and rng.random() < 0.5 else None
    mover = rng.integers(1, count) if count > 1 and rng.random() < 0.5 else None
    things = []
    for number, (color, shape) in enumerate(pairs):
        motion = pick(MOTIONS) if number in (0, mover) else "still"
        event = pick(EVENTS) if number in (0, eventful) else "nothing"
        fields = {"size": pick(RADII), "motion": motion, "event": event} | (subject if number == 0 else {})
        turns = [name for name in COLOR_NAMES if (name, shape) not in pairs]
        detail = {"turn": pick(turns), "blink": pick(BLINKS)}
        fields = {"detail": detail.get(fields["event"], "")} | fields
        things.append(Thing(**{"color": color, "shape": shape, **fields}))
    return things


def _place(things: list[Thing], rng: np.random.Generator) -> Scene | None:
    """The things at places where none touches another or the edge; None if there is no room."""
    times, placed = frame_times(LAYOUT_TIMES), []
    for thing in things:
        path, half = replace(thing, place=(0.0, 0.0)).centers(times), HALF * thing.radii(times)[:, None]
        low, high = GAP - (path - half).min(0), 1 - GAP - (path + half).max(0)
        places = low + (high - low) * rng.uniform(size=(TRIES, 2))
        free = np.full(TRIES, (low < high).all())
        for _, other, around in placed:
            apart = np.abs(places[:, None] + path - other) >= half + around + GAP
            free &= apart.any(2).all(1)
        if not free.any():
            return None
        place = places[free.argmax()]
        placed.append((replace(thing, place=(float(place[0]), float(place[1]))), place + path, half))
    ground, offset = GROUND_NAMES[rng.integers(len(GROUND_NAMES))], rng.uniform(0, 4, size=2)
    return Scene(tuple(thing for thing, _, _ in placed), ground, (float(offset[0]), float(offset[1])))
