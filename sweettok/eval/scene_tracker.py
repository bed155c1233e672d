"""Rule-based recognition of scenes: all objects of a clip, their shapes, colours, sizes, motions and events.

Pixels are assigned by colour to the ground or to objects, as in `tracker`; objects are connected regions, followed from
frame to frame. No caption, no question and nothing learned is used, so real and generated clips are measured alike.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy import ndarray
from scipy.ndimage import center_of_mass, find_objects, label
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sweettok.data import scenes
from sweettok.data.scenes import COLOR_NAMES, GROUND_NAMES, MOTIONS, RADII, SHAPE_NAMES, Scene, Thing, coverage
from sweettok.data.synthetic import COLORS, GROUND_COLORS
from sweettok.eval.tracker import BITS, color_distances

LEAST_AREA = 0.002  # of the frame: smaller regions are not objects
NEAR, SPEED = 0.05, 1.2  # an object moves at most NEAR + SPEED * time, in frame sizes
OTHER_COLOR = 0.1  # distance that a change of colour counts as
LOST = 0.3  # time after which a hidden object is not followed any more
SEEN = 0.15  # of the frames in which an object must be seen
LEAST_GAP = 0.06  # time that an object must be hidden for
CHANGED = 1.25  # ratio of radii at the end and at the start
MOVED = 0.02  # root mean square of the distance to the mean place, above which an object moves
AMPLITUDES = (0.5, 1.6)  # of motions, relative to those of scenes
LOOKS = 9  # frames at which the shape is looked at


@dataclass
class Region:
    """A connected region of a frame: its centre of mass and area in frame sizes, its pixels, and their place."""

    color: str
    center: tuple[float, float]  # x, y
    area: float
    mask: ndarray
    corner: tuple[int, int]  # row and column of the mask's first pixel


@dataclass
class Track:
    """The regions of an object, by frame."""

    regions: dict[int, Region] = field(default_factory=dict)

    @property
    def last(self) -> int:
        return max(self.regions)


def recognise(video: Tensor) -> Scene:
    """The objects of a clip of a scene, uint8 (3, T, H, W) with H = W, in no particular order."""
    frames, size = video.shape[1], video.shape[-1]
    if video.shape[-2] != size:
        raise ValueError(f"scenes are square, got a clip of {tuple(video.shape)}")
    tracks = [track for track in follow(find_regions(video)) if len(track.regions) >= max(2, SEEN * frames)]
    return Scene(tuple(_thing(track, frames, size) for track in tracks))


def find_regions(video: Tensor) -> list[list[Region]]:
    """The regions of every frame that have the colour of an object."""
    red, green, blue = video.cpu().numpy() >> (8 - BITS)
    names, grounds = list(COLORS), list(GROUND_COLORS)
    rows = [names.index(name) for name in COLOR_NAMES]
    places = [len(names) + grounds.index(name) for name in GROUND_NAMES]
    distances = color_distances()[[*rows, *places]]
    nearest = distances.argmin(0)[red, green, blue]
    counts = np.bincount(nearest.ravel(), minlength=len(distances))[len(rows) :]
    ground = distances[len(rows) + counts.argmax()]
    objects = (distances[: len(rows)].min(0) < ground)[red, green, blue]
    color = distances[: len(rows)].argmin(0)[red, green, blue]
    return [_regions(mask, colors) for mask, colors in zip(objects, color, strict=True)]


def _regions(mask: ndarray, colors: ndarray) -> list[Region]:
    size, found = len(mask), []
    labels, _ = label(mask)
    for number, box in enumerate(find_objects(labels), start=1):
        part = labels[box] == number
        if part.sum() < LEAST_AREA * mask.size:
            continue
        color = COLOR_NAMES[np.bincount(colors[box][part]).argmax()]
        row, column = center_of_mass(part)
        corner = box[0].start, box[1].start
        center = (corner[1] + column + 0.5) / size, (corner[0] + row + 0.5) / size
        found.append(Region(color, center, part.sum() / mask.size, part, corner))
    return found


def follow(frames: list[list[Region]]) -> list[Track]:
    """Join the regions of consecutive frames to tracks, by place and colour; tracks may have gaps."""
    tracks: list[Track] = []
    step = 1 / max(len(frames) - 1, 1)
    for number, regions in enumerate(frames):
        open_tracks = [track for track in tracks if (number - track.last) * step <= max(LOST, 2 * step)]
        cost = np.full((len(open_tracks), len(regions)), 1e3)
        for i, track in enumerate(open_tracks):
            before, time = track.regions[track.last], (number - track.last) * step
            for j, region in enumerate(regions):
                distance = np.hypot(*np.subtract(region.center, before.center))
                if distance <= NEAR + SPEED * time:
                    cost[i, j] = distance + OTHER_COLOR * (region.color != before.color)
        joined = set()
        for i, j in zip(*linear_sum_assignment(cost), strict=True):
            if cost[i, j] < 1e3:
                open_tracks[i].regions[number] = regions[j]
                joined.add(j)
        tracks += [Track({number: region}) for j, region in enumerate(regions) if j not in joined]
    return tracks


def _thing(track: Track, frames: int, size: int) -> Thing:
    numbers = np.array(sorted(track.regions))
    times = scenes.frame_times(frames)[numbers]
    regions = [track.regions[number] for number in numbers]
    looks = np.unique(np.linspace(0, len(regions) - 1, LOOKS).round().astype(int))
    scores = {shape: np.mean([_likeness(regions[n], shape, size) for n in looks]) for shape in SHAPE_NAMES}
    shape = max(scores, key=scores.__getitem__)
    area, middle = _template(shape)
    radii = np.sqrt([region.area / area for region in regions])
    centers = np.array([region.center for region in regions]) - middle * radii[:, None]
    event, detail = _event(numbers, times, radii, [region.color for region in regions], frames)
    first = radii[times < 0.25] if event in ("grow", "shrink") and (times < 0.25).any() else radii
    scale = float(np.median(first))
    named = min(RADII, key=lambda name: abs(np.log(RADII[name] / scale)))
    early = [region.color for region, time in zip(regions, times, strict=True) if time < scenes.CHANGE]
    color = _most(early if early and event == "turn" else [region.color for region in regions])
    motion, place = _motion(times, centers)
    return Thing(color, shape, named, motion, event, detail, place)


def _event(numbers: ndarray, times: ndarray, radii: ndarray, colors: list[str], frames: int) -> tuple[str, str]:
    step = 1 / max(frames - 1, 1)
    if times[0] > LOST:
        return "appear", ""
    if times[-1] < 1 - LOST:
        return "disappear", ""
    hidden = (np.diff(numbers) - 1) * step
    gaps = int((hidden >= LEAST_GAP).sum())  # in clips of few frames one hidden frame is enough
    if gaps:
        return "blink", str(min(gaps, len(scenes.BLINKS)))
    halves = [[c for c, late in zip(colors, times >= scenes.CHANGE, strict=True) if late == side] for side in (0, 1)]
    if all(halves) and _most(halves[0]) != _most(halves[1]):
        return "turn", _most(halves[1])
    ends = radii[times < 0.25], radii[times > 0.75]
    ratio = float(np.median(ends[1]) / np.median(ends[0])) if all(map(len, ends)) else 1.0
    if max(ratio, 1 / ratio) > CHANGED:
        return ("grow" if ratio > 1 else "shrink"), ""
    return "nothing", ""


def _motion(times: ndarray, centers: ndarray) -> tuple[str, tuple[float, float]]:
    """The motion with the nearest path, and the middle of the path."""
    mean = centers.mean(0)
    still = float(np.sqrt(np.square(centers - mean).sum(1).mean()))
    found = {"still": (still, mean)}
    for motion in MOTIONS[1:] if still > MOVED else ():
        path = replace(_STILL, motion=motion).centers(times) - _STILL.place
        around = path - path.mean(0)
        scale = float((around * (centers - mean)).sum() / max(np.square(around).sum(), 1e-9))
        scale = float(np.clip(scale, *AMPLITUDES))
        error = float(np.sqrt(np.square(centers - mean - scale * around).sum(1).mean()))
        found[motion] = error, mean - path.mean(0)
    motion = min(found, key=lambda name: found[name][0])
    place = found[motion][1]
    return motion, (float(place[0]), float(place[1]))


def _likeness(region: Region, shape: str, size: int) -> float:
    """Intersection over union of a region with a shape of the same area and centre of mass."""
    area, middle = _template(shape)
    radius = np.sqrt(region.area / area)
    center = np.array(region.center) - middle * radius
    height, width = region.mask.shape
    y, x = np.meshgrid(np.arange(-2, height + 2), np.arange(-2, width + 2), indexing="ij")
    dx, dy = (x + region.corner[1] + 0.5) / size - center[0], (y + region.corner[0] + 0.5) / size - center[1]
    drawn, seen = coverage(shape, dx, dy, radius, size) >= 0.5, np.pad(region.mask, 2)
    return float((drawn & seen).sum() / (drawn | seen).sum())


@lru_cache
def _template(shape: str) -> tuple[float, ndarray]:
    """Area and centre of mass (x, y) of a shape of radius 1."""
    places = (np.arange(400) + 0.5) / 100 - 2
    y, x = np.meshgrid(places, places, indexing="ij")
    inside = coverage(shape, x, y, 1.0, 100) >= 0.5
    return float(inside.mean() * 16), np.array([x[inside].mean(), y[inside].mean()])


def _most(names: list[str]) -> str:
    return Counter(names).most_common(1)[0][0]


_STILL = Thing(COLOR_NAMES[0], SHAPE_NAMES[0], next(iter(RADII)))
