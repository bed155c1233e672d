"""Synthetic clips: textured shapes that move over textured grounds, with captions and class labels known by construction.

For trying everything out without a dataset. A clip's class is its motion; its caption names size, colour, pattern and shape of the
object, the motion, its manner and the ground. Textures are smooth and the colours few, so that a tiny model learns them in minutes,
and both the object and the ground always move, so that a still picture is a bad prediction of a clip.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from tqdm import tqdm

from .lists import write_list
from .writer import write_aside, write_video

FORMAT = 1  # of the manifest and the drawing rules: raise it when the same seed would give other pixels

SIZES = {"small": 0.19, "big": 0.25, "huge": 0.31}  # radius, in frame sizes
COLORS = {
    "red": (0.90, 0.16, 0.14),
    "orange": (0.96, 0.56, 0.10),
    "yellow": (0.96, 0.88, 0.20),
    "green": (0.16, 0.68, 0.24),
    "blue": (0.16, 0.34, 0.92),
    "purple": (0.58, 0.20, 0.78),
    "white": (0.95, 0.95, 0.95),
    "black": (0.08, 0.08, 0.10),
}
MANNERS = {"slowly": 0.6, "smoothly": 1.0, "jerkily": 1.0, "quickly": 1.5}  # speed


# Grounds and patterns take coordinates in frame sizes and radii, and return values in [0, 1] that mix two colours.
def _wave(phase: ndarray) -> ndarray:
    return 0.5 + 0.5 * np.sin(2 * math.pi * phase)


GROUNDS: dict[str, tuple[Callable[[ndarray, ndarray], ndarray], tuple, tuple]] = {
    "gravel": (lambda x, y: _wave(2.3 * x + 0.4 * _wave(1.7 * y)) * _wave(2.1 * y + 0.5 * _wave(1.9 * x)), (0.30, 0.30, 0.32), (0.78, 0.76, 0.72)),
    "grass": (lambda x, y: _wave(3.0 * x + 0.35 * _wave(1.2 * y)), (0.08, 0.32, 0.10), (0.46, 0.74, 0.28)),
    "stripes": (lambda x, y: _wave(1.6 * (x + y)), (0.20, 0.22, 0.45), (0.82, 0.84, 0.92)),
    "sand": (lambda x, y: _wave(2.2 * y + 0.5 * _wave(1.1 * x)), (0.62, 0.46, 0.24), (0.95, 0.84, 0.60)),
    "tiles": (lambda x, y: 0.5 + 0.5 * np.tanh(4 * np.sin(5 * math.pi * x / 2) * np.sin(5 * math.pi * y / 2)), (0.34, 0.16, 0.14), (0.86, 0.72, 0.62)),
    "water": (lambda x, y: _wave(1.8 * x + 0.5 * y + 0.5 * _wave(1.3 * y - 0.7 * x)), (0.04, 0.22, 0.44), (0.42, 0.74, 0.88)),
    "snow": (lambda x, y: _wave(1.4 * x + 0.6 * _wave(1.2 * y)) ** 2 * _wave(1.5 * y), (0.92, 0.94, 0.98), (0.52, 0.60, 0.74)),
    "wood": (lambda x, y: _wave(2.6 * y + 0.3 * _wave(0.8 * x) + 0.2 * x), (0.26, 0.14, 0.06), (0.70, 0.46, 0.26)),
}
PATTERNS: dict[str, Callable[[ndarray, ndarray], ndarray]] = {
    "striped": lambda u, v: _wave(1.1 * u),
    "dotted": lambda u, v: _wave(1.0 * u) * _wave(1.0 * v) * 1.2,
    "checkered": lambda u, v: 0.5 + 0.5 * np.tanh(3 * np.sin(math.pi * 1.2 * u) * np.sin(math.pi * 1.2 * v)),
    "shaded": lambda u, v: np.clip(0.5 + 0.45 * (u + v), 0, 1),
}


# Shapes are distances to the outline in radii, negative inside, for coordinates u, v in radii.
def _box(u: ndarray, v: ndarray, half_u: float, half_v: float) -> ndarray:
    return np.maximum(np.abs(u) - half_u, np.abs(v) - half_v)


def _star(u: ndarray, v: ndarray) -> ndarray:
    return np.hypot(u, v) - (0.78 + 0.26 * np.cos(5 * np.arctan2(v, u)))


SHAPES: dict[str, Callable[[ndarray, ndarray], ndarray]] = {
    "circle": lambda u, v: np.hypot(u, v) - 1,
    "square": lambda u, v: _box(u, v, 0.86, 0.86),
    "triangle": lambda u, v: np.maximum(np.maximum(0.87 * u + 0.5 * v, -0.87 * u + 0.5 * v) - 0.6, -v - 0.7),
    "diamond": lambda u, v: 0.7 * (np.abs(u) + 1.3 * np.abs(v)) - 0.8,
    "cross": lambda u, v: np.minimum(_box(u, v, 1.0, 0.4), _box(u, v, 0.4, 1.0)),
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.72) - 0.32,
    "star": _star,
    "bar": lambda u, v: _box(u, v, 1.15, 0.5),
}


@dataclass(frozen=True)
class Pose:
    """Where the object is at each frame: centre in frame sizes, angle in radians, factor on its radius; each (T,)."""

    x: ndarray
    y: ndarray
    angle: ndarray
    scale: ndarray


def _bounce(t: ndarray) -> ndarray:
    return 0.72 - 0.46 * np.abs(np.sin(math.pi * t * 1.6))


# A motion maps time, which passes 1 in 16 frames at ordinary speed, and a start in [0, 1) to (x, y, angle, scale).
Motion = Callable[[ndarray, float], tuple[ndarray | float, ndarray | float, ndarray | float, ndarray | float]]
MOTIONS: dict[str, tuple[Motion, tuple[str, ...], tuple[str, ...]]] = {
    "slide-left": (lambda t, s: (s - t, 0.5, 0, 1), ("slides", "glides", "drifts"), ("left",)),
    "slide-right": (lambda t, s: (s + t, 0.5, 0, 1), ("slides", "glides", "drifts"), ("right",)),
    "rise": (lambda t, s: (0.5, s - t, 0, 1), ("rises", "climbs", "floats"), ("up", "upwards")),
    "fall": (lambda t, s: (0.5, s + t, 0, 1), ("falls", "drops", "sinks"), ("down", "downwards")),
    "bounce": (lambda t, s: (s + 0.3 * t, _bounce(t + s), 0, 1), ("bounces", "hops", "jumps"), ("repeatedly",)),
    "spin": (lambda t, s: (0.5, 0.5, 2 * math.pi * (s + 0.8 * t), 1.25), ("spins", "turns", "rotates"), ("around",)),
    "grow": (lambda t, s: (0.5, 0.5, 0, 0.55 * 2.6 ** (t - 0.2)), ("grows", "expands", "swells"), ("steadily",)),
    "shrink": (lambda t, s: (0.5, 0.5, 0, 1.9 * 2.6 ** -t), ("shrinks", "contracts", "dwindles"), ("steadily",)),
}
CLASSES = tuple(MOTIONS)
