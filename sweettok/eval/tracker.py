"""Rule-based tracking of the object in synthetic clips: where it is, how large, and which motion it performs.

Pixels are assigned by colour alone, to the ground or to the object, whose colours are those of synthetic clips
(`sweettok.data.synthetic`). No caption, no other clip and nothing learned is used, so originals, reconstructions and
generated clips are measured in the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy import ndarray
from torch import Tensor

from sweettok.data.synthetic import COLORS, GROUND_COLORS, PATTERN_SHADE, VISIBLE

SHADES = 9  # colours that stand for a range of colours
BITS = 5  # of each channel that is looked at: colours are looked up in a table
MIN_AREA, MAX_AREA = 0.01, 0.6  # of the frame: a smaller or larger region is not an object


@dataclass(frozen=True)
class Track:
    """The object of a clip of T frames.

    Attributes:
        color: name of its colour.
        centers: (T, 2) float, row and column in pixels; NaN where it was not found. Frames wrap around.
        areas: (T,) float, pixels.
    """

    color: str
    centers: ndarray
    areas: ndarray
    size: tuple[int, int]  # height and width of a frame

    @property
    def found(self) -> ndarray:
        """(T,) bool, the frames in which there is an object."""
        return ~np.isnan(self.centers[:, 0])

    def motion(self) -> str | None:
        """The class of its motion (see `synthetic.CLASSES`), or None if it is found in too few frames."""
        if self.found.mean() < 0.75 or self.found.sum() < 4:
            return None
        height, width = self.size
        centers, areas = self.centers[self.found], self.areas[self.found]
        steps = wrapped(np.diff(centers, axis=0), self.size) / (height, width)
        rows, columns = steps.T
        path = np.abs(np.cumsum(steps, axis=0)).max(0)
        if path.max() > 0.1:
            if path[1] > path[0]:
                return "slide-left" if columns.sum() < 0 else "slide-right"
            forth, back = rows[rows > 0].sum(), -rows[rows < 0].sum()
            if min(forth, back) > 0.15 * max(forth, back):
                return "bounce"
            return "rise" if back > forth else "fall"
        growth = np.polyfit(np.linspace(0, 1, len(areas)), np.log(areas), 1)[0]
        if abs(growth) > 0.3:
            return "grow" if growth > 0 else "shrink"
        return "spin"


def track(video: Tensor) -> Track:
    """Find the object in a synthetic clip, uint8 (3, T, H, W).

    The ground is the one with most pixels; the object has the most frequent of the colours that objects on it can have,
    where a pixel is nearer to that colour than to the ground.
    """
    red, green, blue = video.cpu().numpy() >> (8 - BITS)
    names, grounds, distances = list(COLORS), list(GROUND_COLORS), color_distances()
    nearest = distances.argmin(0)[red, green, blue]
    number = max(range(len(grounds)), key=lambda ground: (nearest == len(names) + ground).sum())
    candidates = [names.index(color) for color in VISIBLE[grounds[number]]]
    among = np.array([*candidates, len(names) + number])
    chosen = among[distances[among].argmin(0)][red, green, blue]
    shares = [np.median((chosen == color).mean((1, 2))) for color in candidates]
    color = candidates[int(np.argmax([share * (share < MAX_AREA) for share in shares]))]
    masks = (distances[color] < distances[len(names) + number])[red, green, blue]
    height, width = masks.shape[1:]
    centers = np.stack([center(mask) if MIN_AREA < mask.mean() < MAX_AREA else np.full(2, np.nan) for mask in masks])
    return Track(names[color], centers, masks.sum((1, 2)).astype(float), (height, width))


def center(mask: ndarray) -> ndarray:
    """(2,) mean row and column of a boolean mask (H, W) whose edges are joined."""
    found = []
    for axis, size in enumerate(mask.shape):
        angles = 2 * math.pi * (np.arange(size) + 0.5) / size
        weights = mask.sum(1 - axis)
        mean = np.arctan2((weights * np.sin(angles)).sum(), (weights * np.cos(angles)).sum())
        found.append(mean % (2 * math.pi) / (2 * math.pi) * size - 0.5)
    return np.array(found)


def wrapped(offsets: ndarray, size: tuple[int, int]) -> ndarray:
    """Offsets (..., 2) in pixels, each the shortest way around a frame whose edges are joined."""
    edges = np.array(size)
    return (offsets + edges / 2) % edges - edges / 2


def to_lab(rgb: ndarray) -> ndarray:
    """sRGB in [0, 1], (..., 3) -> CIE L*a*b* under D65."""
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.95047, 1.0, 1.08883])
    x, y, z = np.moveaxis(np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@lru_cache
def color_distances() -> ndarray:
    """Squared L*a*b* distance of all colours of BITS bits per channel to each object colour, then to each ground."""
    levels = (np.arange(2**BITS) + 0.5) / 2**BITS
    lab = to_lab(np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1))
    _, palette = _palette()
    return np.stack([np.square(lab[..., None, :] - shades).sum(-1).min(-1) for shades in palette])


def _palette() -> tuple[list[str], list[ndarray]]:
    """Names of the object colours; and of each, then of each ground, (SHADES, 3) colours in L*a*b*."""
    weights = np.linspace(0, 1, SHADES)[:, None]
    objects = [np.array(color) * (PATTERN_SHADE + weights * (1 - PATTERN_SHADE)) for color in COLORS.values()]
    grounds = [np.array(low) + weights * (np.array(high) - low) for low, high in GROUND_COLORS.values()]
    return list(COLORS), [to_lab(shades) for shades in objects + grounds]
