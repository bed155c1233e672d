"""Synthetic clips for tests and tiny models: textured shapes moving over textured grounds, with captions and labels.

The class of a clip is its motion. The caption describes size, colour, pattern, shape, motion and manner of the object,
and the ground. The camera stands still, so that all motion is the object's.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from sweettok.data.synonyms import SYNONYMS

FORMAT = 4  # raise it when a seed gives other clips than before
FRAMES_PER_UNIT = 40  # frames in which motion time advances by 1 at ordinary speed
GROUND_DETAIL = 0.4  # scales the frequency of the ground textures below
PATTERN_SHADE = 0.7  # brightness of the darker tone of a pattern

Color = tuple[float, float, float]
Field = Callable[[ndarray, ndarray], ndarray]  # two coordinates -> one value at each point


def _wave(phase: ndarray) -> ndarray:
    return 0.5 + 0.5 * np.sin(2 * math.pi * phase)


def _checks(x: ndarray, y: ndarray) -> ndarray:
    return 0.5 + 0.5 * np.tanh(3 * np.sin(2 * math.pi * x) * np.sin(2 * math.pi * y))


def _box(u: ndarray, v: ndarray, half_u: float, half_v: float) -> ndarray:
    return np.maximum(np.abs(u) - half_u, np.abs(v) - half_v)


# Values in [0, 1] that mix the two colours of a ground. Coordinates are in frame sizes.
GROUNDS: dict[str, Field] = {
    "gravel": lambda x, y: 1.3 * _wave(2.1 * x + 0.4 * _wave(1.7 * y)) * _wave(1.9 * y + 0.5 * _wave(1.9 * x)),
    "grass": lambda x, y: _wave(2.8 * x + 0.35 * _wave(1.2 * y)),
    "stripes": lambda x, y: _wave(2.2 * x + 0.6 * y),
    "sand": lambda x, y: _wave(2.2 * y + 0.5 * _wave(1.1 * x)),
    "tiles": lambda x, y: _checks(1.2 * x, 1.2 * y),
    "water": lambda x, y: _wave(1.8 * x + 0.5 * y + 0.5 * _wave(1.3 * y - 0.7 * x)),
    "snow": lambda x, y: 1.3 * _wave(1.4 * x + 0.6 * _wave(1.2 * y)) * _wave(1.5 * y),
    "wood": lambda x, y: _wave(2.4 * y + 0.3 * _wave(0.8 * x) + 0.4 * x),
}
GROUND_COLORS: dict[str, tuple[Color, Color]] = {
    "gravel": ((0.26, 0.26, 0.28), (0.80, 0.78, 0.74)),
    "grass": ((0.06, 0.30, 0.10), (0.50, 0.78, 0.30)),
    "stripes": ((0.20, 0.22, 0.45), (0.82, 0.84, 0.92)),
    "sand": ((0.56, 0.38, 0.16), (0.96, 0.86, 0.64)),
    "tiles": ((0.36, 0.16, 0.14), (0.86, 0.72, 0.62)),
    "water": ((0.02, 0.18, 0.40), (0.46, 0.78, 0.90)),
    "snow": ((0.96, 0.97, 0.99), (0.44, 0.54, 0.70)),
    "wood": ((0.24, 0.12, 0.05), (0.74, 0.50, 0.28)),
}
# Colours of objects that differ clearly from all shades of the ground.
VISIBLE: dict[str, tuple[str, ...]] = {
    "gravel": ("red", "orange", "yellow", "green", "blue", "purple"),
    "grass": ("red", "orange", "yellow", "blue", "purple", "white", "black"),
    "stripes": ("red", "orange", "yellow", "green", "black"),
    "sand": ("red", "green", "blue", "purple", "black"),
    "tiles": ("red", "orange", "yellow", "green", "blue", "purple"),
    "water": ("red", "orange", "yellow", "green", "purple", "black"),
    "snow": ("red", "orange", "yellow", "green", "blue", "purple", "black"),
    "wood": ("red", "yellow", "green", "blue", "purple", "white"),
}

# Values in [0, 1] that shade an object from its colour to a darker one. Coordinates are in radii.
PATTERNS: dict[str, Field] = {
    "striped": lambda u, v: _wave(1.1 * u),
    "dotted": lambda u, v: 1.2 * _wave(u) * _wave(v),
    "checkered": lambda u, v: _checks(0.6 * u, 0.6 * v),
    "shaded": lambda u, v: 0.5 + 0.45 * (u + v),
}

# Distances to the outline in radii, negative inside. Coordinates are in radii.
SHAPES: dict[str, Field] = {
    "circle": lambda u, v: np.hypot(u, v) - 1,
    "square": lambda u, v: _box(u, v, 0.86, 0.86),
    "triangle": lambda u, v: np.maximum(np.maximum(0.87 * u + 0.5 * v, -0.87 * u + 0.5 * v) - 0.6, -v - 0.7),
    "diamond": lambda u, v: 0.7 * np.abs(u) + 0.9 * np.abs(v) - 0.8,
    "cross": lambda u, v: np.minimum(_box(u, v, 1.0, 0.4), _box(u, v, 0.4, 1.0)),
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.72) - 0.32,
    "star": lambda u, v: np.hypot(u, v) - (0.78 + 0.26 * np.cos(5 * np.arctan2(v, u))),
    "bar": lambda u, v: _box(u, v, 1.15, 0.5),
}
SIZES = {"small": 0.18, "big": 0.23, "huge": 0.28}  # radius in frame sizes
COLORS: dict[str, Color] = {
    "red": (0.90, 0.16, 0.14),
    "orange": (0.96, 0.56, 0.10),
    "yellow": (0.96, 0.88, 0.20),
    "green": (0.16, 0.68, 0.24),
    "blue": (0.16, 0.34, 0.92),
    "purple": (0.58, 0.20, 0.78),
    "white": (0.95, 0.95, 0.95),
    "black": (0.08, 0.08, 0.10),
}
MANNERS = {"slowly": 0.8, "smoothly": 1.0, "jerkily": 1.0, "quickly": 1.3}  # speed

# What plain scenes are made of. Each ground is always the same picture, and objects start at few places, from which
# they do not leave the frame in 17 frames: little to learn beside the object and its motion, so that minutes of
# training are enough for a generator.
PLAIN: dict[str, tuple[str, ...]] = {
    "ground": ("grass", "sand", "snow", "water"),
    "size": ("big",),
    "color": ("red", "yellow", "green", "blue", "purple"),
    "pattern": ("shaded",),
    "shape": ("circle", "square", "triangle", "cross"),
    "manner": ("slowly", "smoothly"),
}
# Values of the two numbers of a motion's pose.
PLAIN_STARTS = {"slide-left": (0.625, 0.75), "slide-right": (0.25, 0.375), "rise": (0.625, 0.75), "fall": (0.25, 0.375)}
OTHER_STARTS = (0.0, 0.25, 0.5, 0.75)
PLAIN_PLACES = (0.1875, 0.5, 0.8125)  # an eighth of the frame apart
HELD_OUT = 5  # one in so many combinations of ground, colour and shape is that of no plain training clip


@dataclass(frozen=True)
class Motion:
    """A motion and its words.

    `pose` maps time (T,) and two fixed numbers in [0, 1) to centre x and y in frame sizes (which wrap around), angle in
    radians and factor on the radius, each (T,) or constant.
    """

    pose: Callable[[ndarray, float, float], tuple]
    verbs: tuple[str, ...]
    adverbs: tuple[str, ...]


SLIDING = ("slides", "glides", "drifts", "skates", "moves", "travels", "sails", "shifts")
MOTIONS = {
    "slide-left": Motion(
        lambda t, a, b: (a - t, 0.3 + 0.4 * b, 0, 1), SLIDING, ("left", "leftwards", "westwards", "leftward")
    ),
    "slide-right": Motion(
        lambda t, a, b: (a + t, 0.3 + 0.4 * b, 0, 1), SLIDING, ("right", "rightwards", "eastwards", "rightward")
    ),
    "rise": Motion(
        lambda t, a, b: (0.3 + 0.4 * b, a - t, 0, 1),
        ("rises", "climbs", "floats", "ascends", "soars", "lifts", "mounts", "levitates"),
        ("up", "upwards", "skywards", "aloft"),
    ),
    "fall": Motion(
        lambda t, a, b: (0.3 + 0.4 * b, a + t, 0, 1),
        ("falls", "drops", "sinks", "descends", "plunges", "tumbles", "plummets", "dives"),
        ("down", "downwards", "earthwards", "below"),
    ),
    "bounce": Motion(
        lambda t, a, b: (0.3 + 0.4 * b, 0.7 - 0.4 * np.abs(np.sin(math.pi * (2.5 * t + a))), 0, 1),
        ("bounces", "hops", "jumps", "leaps", "springs", "bounds", "skips", "rebounds"),
        ("repeatedly", "again", "continually", "endlessly"),
    ),
    "spin": Motion(
        lambda t, a, b: (0.5, 0.5, 2 * math.pi * (0.8 * t + a), 1.3),
        ("spins", "turns", "rotates", "twirls", "whirls", "revolves", "pivots", "swivels"),
        ("around", "about", "circularly", "roundabout"),
    ),
    "grow": Motion(
        lambda t, a, b: (0.5, 0.5, 0, 0.55 + 1.15 * (1 - np.exp(-1.8 * t))),
        ("grows", "expands", "swells", "enlarges", "inflates", "widens", "spreads", "balloons"),
        ("outwards", "out", "increasingly", "bigger"),
    ),
    "shrink": Motion(
        lambda t, a, b: (0.5, 0.5, 0, 0.3 + 1.15 * np.exp(-2 * t)),
        ("shrinks", "contracts", "dwindles", "narrows", "deflates", "lessens", "diminishes", "recedes"),
        ("inwards", "in", "decreasingly", "smaller"),
    ),
}
CLASSES = tuple(MOTIONS)


@dataclass(frozen=True)
class Caption:
    """A sentence, and its words with their part of speech: adjective, noun, adverb, verb or other."""

    words: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        return " ".join(word for word, _ in self.words)

    @property
    def content(self) -> tuple[tuple[str, str], ...]:
        """The words that carry meaning: all but `other`."""
        return tuple(pair for pair in self.words if pair[1] != "other")


@dataclass(frozen=True)
class SyntheticClip:
    """uint8 video (3, T, H, W), class index, class name and caption."""

    video: Tensor
    label: int
    class_name: str
    caption: Caption


@dataclass(frozen=True)
class Scene:
    """Description of a clip, from which it is drawn."""

    motion: str
    verb: str
    adverb: str
    manner: str
    size: str
    color: str
    pattern: str
    shape: str
    ground: str
    words: tuple[str, ...]  # of the caption: size, colour, pattern, shape, manner, ground
    place: tuple[float, float]  # the two numbers of the motion's pose
    offset: tuple[float, float]  # of the ground

    @classmethod
    def sample(cls, motion: str, rng: np.random.Generator, plain: bool = False, held_out: bool = False) -> "Scene":
        """A random scene; `plain`: made of PLAIN, with a combination that is held out from training, or with others."""

        def pick(words: Iterable[str], attribute: str = "") -> str:
            words = sorted(set(words) & set(PLAIN[attribute]) if plain and attribute else words)
            return words[rng.integers(len(words))]

        while True:
            ground, size = pick(GROUNDS, "ground"), pick(SIZES, "size")
            color, pattern, shape = pick(VISIBLE[ground], "color"), pick(PATTERNS, "pattern"), pick(SHAPES, "shape")
            if not plain or held_out == _held_out(ground=ground, color=color, shape=shape):
                break
        manner = pick(MANNERS, "manner")
        verb, adverb = pick(MOTIONS[motion].verbs), pick(MOTIONS[motion].adverbs)
        words = tuple(pick(SYNONYMS[word]) for word in (size, color, pattern, shape, manner, ground))
        place, offset = tuple(rng.uniform(size=2)), tuple(rng.uniform(0, 4, size=2))
        if plain:
            choices = PLAIN_STARTS.get(motion, OTHER_STARTS), PLAIN_PLACES
            place = tuple(few[int(part * len(few))] for part, few in zip(place, choices, strict=True))
            offset = (0.0, 0.0)
        return cls(motion, verb, adverb, manner, size, color, pattern, shape, ground, words, place, offset)

    def caption(self) -> Caption:
        *adjectives, shape, manner, ground = self.words
        article = "an" if adjectives[0][0] in "aeiou" else "a"
        thing = ((article, "other"), *((word, "adjective") for word in adjectives), (shape, "noun"))
        action = ((self.verb, "verb"), (manner, "adverb"), (self.adverb, "adverb"))
        return Caption((*thing, *action, ("over", "other"), (ground, "noun")))

    def draw(self, frames: int, height: int, width: int) -> Tensor:
        """The clip as uint8 (3, frames, height, width)."""
        unit = min(height, width)
        t, y, x = np.meshgrid(
            np.arange(frames, dtype=np.float32),
            (np.arange(height, dtype=np.float32) + 0.5) / unit,
            (np.arange(width, dtype=np.float32) + 0.5) / unit,
            indexing="ij",
        )
        ground = GROUNDS[self.ground](self.offset[0] + GROUND_DETAIL * x, self.offset[1] + GROUND_DETAIL * y)
        picture = mix(*GROUND_COLORS[self.ground], ground)
        shade, cover = self._object(x, y, height / unit, width / unit, unit)
        color = np.array(COLORS[self.color], dtype=np.float32)
        picture += cover * (mix(PATTERN_SHADE * color, color, shade) - picture)
        return torch.from_numpy((picture * 255).round().astype(np.uint8)).permute(3, 0, 1, 2).contiguous()

    def _object(self, x: ndarray, y: ndarray, height: float, width: float, unit: int) -> tuple[ndarray, ndarray]:
        """Pattern (T, H, W) and anti-aliased coverage (T, H, W, 1) of the object."""
        time = np.arange(len(x), dtype=np.float32) * (MANNERS[self.manner] / FRAMES_PER_UNIT)
        if self.manner == "jerkily":  # stands still for half of every quarter unit
            whole, part = np.divmod(4 * time, 1)
            time = (whole + np.clip(2 * part - 1, 0, 1)) / 4
        pose = np.broadcast_arrays(*MOTIONS[self.motion].pose(time, *self.place), time)[:4]
        center_x, center_y, angle, scale = (value.astype(np.float32)[:, None, None] for value in pose)
        radius = SIZES[self.size] * scale
        dx = ((x - center_x * width + width / 2) % width - width / 2) / radius
        dy = ((y - center_y * height + height / 2) % height - height / 2) / radius
        u = np.cos(angle) * dx + np.sin(angle) * dy
        v = np.cos(angle) * dy - np.sin(angle) * dx
        cover = np.clip(0.5 - SHAPES[self.shape](u, v) * radius * unit, 0, 1)
        return PATTERNS[self.pattern](u, v), cover[..., None]


def _held_out(**words: str) -> bool:
    return sum(PLAIN[attribute].index(word) for attribute, word in words.items()) % HELD_OUT == 0


def mix(low: Color | ndarray, high: Color | ndarray, weight: ndarray) -> ndarray:
    low, high = np.asarray(low, dtype=np.float32), np.asarray(high, dtype=np.float32)
    return low + np.clip(weight, 0, 1)[..., None] * (high - low)


def synthetic_clip(
    index: int,
    frames: int,
    size: int | tuple[int, int],
    seed: int = 0,
    plain: bool = False,
    held_out: bool = False,
) -> SyntheticClip:
    """Clip `index` of the infinite series of a seed; classes alternate. `size`: (height, width), or one number.

    plain, held_out: see `Scene.sample`.
    """
    height, width = (size, size) if isinstance(size, int) else size
    label, scene = indexed_scene(index, seed, plain, held_out)
    return SyntheticClip(scene.draw(frames, height, width), label, CLASSES[label], scene.caption())


def indexed_scene(index: int, seed: int, plain: bool = False, held_out: bool = False) -> tuple[int, Scene]:
    """Class and scene of a clip of `synthetic_clip`."""
    label = index % len(CLASSES)
    return label, Scene.sample(CLASSES[label], np.random.default_rng([seed, index]), plain, held_out)
