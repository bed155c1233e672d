"""A small scatter plot, drawn with Pillow: one picture does not need a plotting library among the dependencies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw

from sweettok.store import write_aside

WIDTH, HEIGHT = 900, 600
LEFT, RIGHT, TOP, BOTTOM = 90, 30, 30, 60
STEPS = (1, 2, 2.5, 5, 10)
INK, GRID, DOT = "black", "#dddddd", "#1f5fbf"


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers, about `count` of them, that enclose low to high."""
    if low == high:
        low, high = low - max(1.0, abs(low) / 10), high + max(1.0, abs(high) / 10)
    power = 10 ** math.floor(math.log10((high - low) / count))
    step = next(s * power for s in STEPS if (high - low) / (s * power) <= count)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, last + 1)]


def scatter(path: str | Path, points: Mapping[str, tuple[float, float]], across: str, up: str) -> None:
    """Write a PNG of named points (x, y); `across` and `up` name the axes. ValueError without points."""
    if not points:
        raise ValueError("there are no points to plot")
    columns = [ticks(min(axis), max(axis)) for axis in zip(*points.values(), strict=True)]
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)

    def place(x: float, y: float) -> tuple[float, float]:
        (x0, *_, x1), (y0, *_, y1) = columns
        return (
            LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM),
        )

    for x in columns[0]:
        draw.line([place(x, columns[1][0]), place(x, columns[1][-1])], GRID)
        draw.text((place(x, 0)[0], HEIGHT - BOTTOM + 8), f"{x:,g}", INK, anchor="mt")
    for y in columns[1]:
        draw.line([place(columns[0][0], y), place(columns[0][-1], y)], GRID)
        draw.text((LEFT - 8, place(0, y)[1]), f"{y:,g}", INK, anchor="rm")
    draw.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 20), across, INK, anchor="mm")
    draw.text((LEFT, TOP / 2), up, INK, anchor="lm")
    for name, (x, y) in points.items():
        across_at, up_at = place(x, y)
        draw.ellipse([across_at - 4, up_at - 4, across_at + 4, up_at + 4], DOT)
        right = across_at > WIDTH * 0.75
        draw.text((across_at + (-8 if right else 8), up_at), name, INK, anchor="rm" if right else "lm")
    with write_aside(Path(path)) as aside:
        image.save(aside, format="PNG")
