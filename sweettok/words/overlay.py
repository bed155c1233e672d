"""The overlay command: words on the places of the frame that they speak of.

Two panels. Left, on the playing frames: what each temporal query says, its verb over its adverbs. Right, on the same
frames darkened: what each spatial query says, its noun over its adjectives. Below each, the most frequent words. Cells
that say the same head word have the same colour, in every picture.
"""

from __future__ import annotations

import argparse
import colorsys
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sweettok.data.writer import write_png, write_video
from sweettok.store import check_apart
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.output import TokenOutput
from sweettok.words import sources

LINE = 12  # pixels from one line of text to the next
TINT, INK = 90, 255  # opacity of a cell's colour and of its text
PANELS = {"temporal": ("verb", "adverb"), "spatial": ("noun", "adjective")}  # left to right
LISTED = 12  # words of a kind below the panels, where they fit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sources.add_arguments(parser)
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="writes NAME.mp4, and NAME.png of the middle frame")
    add("--cell", type=int, default=56, metavar="PX", help="least width of a temporal query's cell (default: 56)")
    add("--fps", type=float, default=8, help="frames per second of the videos (default: 8)")


def main(args: argparse.Namespace) -> None:
    """Write the overlay of each clip; ValueError and FileNotFoundError name what is wrong."""
    if not 0 < args.fps < math.inf:
        raise ValueError(f"--fps must be above 0, got {args.fps}")
    tokenizer = SweetTok.from_pretrained(args.checkpoint)
    for clip in sources.clips(args, tokenizer, pixels=True):
        stem = Path(args.out) / clip.name
        check_apart(args.videos, (f"{stem}.png", f"{stem}.mp4"))
        drawn = overlay(clip.video, clip.output, cell=args.cell)
        write_png(f"{stem}.png", drawn[:, drawn.shape[1] // 2])
        write_video(f"{stem}.mp4", drawn, args.fps)
        print(f"{clip.name} -> {stem}.{{mp4,png}}")


def overlay(video: Tensor, output: TokenOutput, clip: int = 0, cell: int = 56) -> Tensor:
    """Pixels uint8 (3, T, H, W) of clip number `clip` of `output` -> uint8 (3, T, H', W') with its words on them.

    Frames are enlarged by the smallest whole factor that gives cells `cell` pixels of width. ValueError for a cell
    too narrow for letters, and for pixels that do not fit.
    """
    if cell < LINE:
        raise ValueError(f"a cell must be at least {LINE} pixels wide, got {cell}")
    if video.dtype != torch.uint8 or video.ndim != 4 or video.shape[0] != 3:
        raise ValueError(f"expected uint8 pixels (3, T, H, W), got {video.dtype} {tuple(video.shape)}")
    factor = math.ceil(cell * output.grids["temporal"][1] / video.shape[3])
    large = video.cpu().repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    height, width = large.shape[2:]
    layers = _layers(output, clip, (height, width))
    footer = torch.zeros(3, large.shape[1], 2 * LINE + 4, width, dtype=torch.uint8)
    panels = []
    for branch, frames in zip(PANELS, (large, large // 2), strict=True):
        if branch not in layers:  # an image says nothing of motion
            continue
        panels.append(_blend(torch.cat((frames, footer), dim=2), layers[branch]))
    return torch.cat(panels, dim=3)


def _layers(output: TokenOutput, clip: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """Of each branch: uint8 (4, H + footer, W), colours and opacity of what is drawn over every frame."""
    from PIL import Image, ImageDraw

    names, summary, said = output.names, output.summary(clip), output.queries(clip)
    height, width = size
    layers = {}
    for branch, kinds in PANELS.items():
        if not said[branch]:
            continue
        image = Image.new("RGBA", (width, height + 2 * LINE + 4))
        draw = ImageDraw.Draw(image)
        rows, columns = output.grids[branch]
        for query, ids in enumerate(said[branch]):
            row, column = divmod(query, columns)
            box = (column * width // columns, row * height // rows, (column + 1) * width // columns - 1,
                   (row + 1) * height // rows - 1)  # fmt: skip
            _draw_cell(draw, box, [names[i] for i in reversed(ids)])  # its head word first
        for line, kind in enumerate(kinds):
            told = ", ".join(f"{word.word} {word.count}" for word in summary[kind][:LISTED])
            place = (2, height + 2 + line * LINE)
            draw.text(place, _fitting(draw, f"{kind}: {told}", width - 4), fill=(255, 255, 255, INK))
        layers[branch] = _pixels(image)
    return layers


def _draw_cell(draw: Any, box: tuple[int, int, int, int], words: list[str]) -> None:
    left, top, right, bottom = box
    hue = zlib.crc32(words[0].encode()) / 2**32
    colour = tuple(int(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.8, 1.0))
    draw.rectangle(box, fill=(*colour, TINT), outline=(*colour, INK))
    for line, word in enumerate(words[: (bottom - top) // LINE]):
        shade = 255 if line == 0 else 200
        place = (left + 2, top + 1 + line * LINE)
        draw.text(place, _fitting(draw, word, right - left - 2), fill=(shade, shade, shade, INK),
                  stroke_width=1, stroke_fill=(0, 0, 0, INK))  # fmt: skip


def _fitting(draw: Any, text: str, width: int) -> str:
    """As many of the first letters as fit."""
    while text and draw.textlength(text) > width:
        text = text[:-1]
    return text


def _pixels(image: Any) -> Tensor:
    width, height = image.size
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, 4).permute(2, 0, 1)


def _blend(frames: Tensor, layer: Tensor) -> Tensor:
    """uint8 frames (3, T, H, W) under colours and opacity (4, H, W)."""
    colour, opacity = layer[:3, None].int(), layer[3].int()
    return ((frames.int() * (255 - opacity) + colour * opacity + 127) // 255).to(torch.uint8)
