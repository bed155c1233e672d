"""Draws the words of a clip over its frames.

The left panel shows the verb and the adverbs of each temporal query in its grid cell; the right one the noun and the
adjectives of each spatial query, on darkened frames. Below are the most frequent words. Cells with the same head word
have the same colour in all pictures.
"""

from __future__ import annotations

import colorsys
import math
import zlib
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sweettok.tokenizer.output import TokenOutput

LINE = 12  # pixels from one line of text to the next
FOOTER = 2 * LINE + 4
LARGEST = 4096  # pixels: width of a panel
TINT, INK = 90, 255  # opacity of a cell's colour and of its text
PANELS = {"temporal": ("verb", "adverb"), "spatial": ("noun", "adjective")}  # left to right
LISTED = 12  # most words of a kind below a panel


def overlay(video: Tensor, output: TokenOutput, clip: int = 0, cell: int = 56) -> Tensor:
    """Draw the words of a clip over its frames.

    Args:
        video: uint8 (3, T, H, W), the frames of clip number `clip` of `output`.
        cell: least width of a temporal query's cell in pixels; frames are enlarged by an integer factor for it.

    Returns:
        uint8 (3, T, H', W'). Images have only the panel of the spatial queries.

    Raises:
        ValueError: pixels have another shape, or `cell` is too small for text or too large for a video.
    """
    if video.dtype != torch.uint8 or video.ndim != 4 or video.shape[0] != 3:
        raise ValueError(f"expected uint8 pixels (3, T, H, W), got {video.dtype} {tuple(video.shape)}")
    columns = output.grids["temporal"][1]
    if not LINE <= cell <= max(LINE, LARGEST // columns):
        most = f"{LARGEST // columns} pixels wide where a row has {columns}"
        raise ValueError(f"cells must be {LINE} to {most}, got {cell}")
    factor = math.ceil(cell * columns / video.shape[3])
    height, width = video.shape[2] * factor, video.shape[3] * factor
    layers = _layers(output, clip, height, width)
    frames = []
    for frame in video.cpu().unbind(1):
        large = frame.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        large = torch.cat((large, torch.zeros(3, FOOTER, width, dtype=torch.uint8)), dim=1)
        panels = (_blend(large if branch == "temporal" else large // 2, layer) for branch, layer in layers.items())
        frames.append(torch.cat(tuple(panels), dim=2))
    return torch.stack(frames, dim=1)


def _layers(output: TokenOutput, clip: int, height: int, width: int) -> dict[str, Tensor]:
    """{branch: uint8 (4, H + footer, W)}, colours and opacity of the drawing over a frame."""
    names, summary, queries = output.names, output.summary(clip), output.queries(clip)
    layers = {}
    for branch, kinds in PANELS.items():
        if not queries[branch]:  # images have no temporal queries
            continue
        image = Image.new("RGBA", (width, height + FOOTER))
        draw = ImageDraw.Draw(image)
        rows, columns = output.grids[branch]
        for query, ids in enumerate(queries[branch]):
            row, column = divmod(query, columns)
            top, left = row * height // rows, column * width // columns
            bottom, right = (row + 1) * height // rows - 1, (column + 1) * width // columns - 1
            _draw_cell(draw, (left, top, right, bottom), [names[i] for i in reversed(ids)])  # head word first
        for line, kind in enumerate(kinds):
            words = ", ".join(f"{word.word} {word.count}" for word in summary[kind][:LISTED])
            text = _fitting(draw, f"{kind}: {words}", width - 4)
            draw.text((2, height + 2 + line * LINE), text, fill=(255, 255, 255, INK))
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        layers[branch] = pixels.view(image.height, image.width, 4).permute(2, 0, 1)
    return layers


def _draw_cell(draw: Any, box: tuple[int, int, int, int], words: list[str]) -> None:
    left, top, right, bottom = box
    hue = zlib.crc32(words[0].encode()) / 2**32
    colour = tuple(int(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.8, 1.0))
    draw.rectangle(box, fill=(*colour, TINT), outline=(*colour, INK))
    for line, word in enumerate(words[: (bottom - top) // LINE]):
        text = _fitting(draw, word, right - left - 2)
        fill = (255, 255, 255, INK) if line == 0 else (200, 200, 200, INK)
        draw.text((left + 2, top + 1 + line * LINE), text, fill=fill, stroke_width=1, stroke_fill=(0, 0, 0, INK))


def _fitting(draw: Any, text: str, width: int) -> str:
    """The longest prefix of a text that fits."""
    while text and draw.textlength(text) > width:
        text = text[:-1]
    return text


def _blend(frame: Tensor, layer: Tensor) -> Tensor:
    """Draw colours with opacity (4, H, W) over a uint8 frame (3, H, W)."""
    colour, opacity = layer[:3].int(), layer[3].int()
    return ((frame.int() * (255 - opacity) + colour * opacity + 127) // 255).to(torch.uint8)
