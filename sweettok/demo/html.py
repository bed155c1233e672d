"""Results as HTML: looping videos inside the page, numbers, and word lists. Nothing is left on the disk."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from sweettok.data.writer import enlarge, tile, write_video
from sweettok.demo.models import Analysis
from sweettok.tokenizer.output import WordCount
from sweettok.words.overlay import FOOTER, overlay

LEAST = 384  # pixels: edges of enlarged clips are at least this long
GAP = 8  # pixels between clips of one video
LISTED = 10  # words of each list
CELL = 56  # pixels: least width of a query's cell in the picture of the words
READABLE = 70  # pixels: panels are below each other if their cells would be narrower
STYLE = """
.st-message {border-left: 4px solid #c2410c; background: #fff7ed; color: #7c2d12; padding: .8em 1em; border-radius: 4px}
.st-grid {display: grid; gap: 0 8px; text-align: center; font-weight: 600}
.st-video {width: 100%; display: block; border-radius: 4px}
.st-note {margin: .2em 0 1em; opacity: .8}
.st-examples .grid-wrap {min-height: 0; max-height: none; height: auto}
.st-examples .grid-container {grid-template-columns: repeat(4, minmax(0, 1fr))}
.st-examples .caption-label {font-size: .7em; padding: 0 .4em; right: 0; bottom: 0}
.st-facts {display: flex; flex-wrap: wrap; gap: .8em; margin: 1em 0}
.st-facts div {border: 1px solid var(--border-color-primary); border-radius: 6px; padding: .5em .9em}
.st-facts b {display: block; font-size: 1.4em}
.st-lists {display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 1.5em}
.st-panels {display: grid; gap: 1em}
.st-lists table {width: 100%; border-collapse: collapse}
.st-lists tr, .st-lists td, .st-lists table {border: 0 !important; background: none !important}
.st-lists td {padding: .15em .4em}
.st-lists td.n {text-align: right; font-variant-numeric: tabular-nums; width: 3.5em}
.st-bar {display: block; height: 3px; background: #2563eb; border-radius: 2px}
"""


def message(text: str) -> str:
    """One line that says what is wrong."""
    return f'<div class="st-message" role="alert">{escape(text)}</div>'


def hint(text: str) -> str:
    """What to do, before there is a result."""
    return f'<p class="st-note">{escape(text)}</p>'


def video_tag(clip: Tensor, fps: float, title: str) -> str:
    """uint8 (3, T, H, W) -> a <video> that contains its data and plays in a loop."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        write_video(path, clip, fps)
        data = base64.b64encode(path.read_bytes()).decode()
    options = f'autoplay loop muted playsinline controls aria-label="{escape(title)}"'
    return f'<video class="st-video" {options} src="data:video/mp4;base64,{data}"></video>'


def side_by_side(clips: Sequence[Tensor], titles: Sequence[str], fps: float, mode: str) -> str:
    """Clips, uint8 (3, T, H, W), as one video, so that they play together; as many in a row as there are titles."""
    padded = [torch.nn.functional.pad(enlarge(clip, LEAST, mode), (0, GAP, 0, GAP), value=255) for clip in clips]
    video = tile(padded, len(titles))[:, :, :-GAP, :-GAP]
    heads = "".join(f"<div>{escape(title)}</div>" for title in titles)
    columns = f"grid-template-columns: repeat({len(titles)}, 1fr)"
    return f'<div class="st-grid" style="{columns}">{heads}</div>{video_tag(video, fps, ", ".join(titles))}'


def facts(values: Sequence[tuple[str, str]]) -> str:
    """Numbers with what they are."""
    return '<div class="st-facts">' + "".join(f"<div><b>{v}</b>{escape(name)}</div>" for v, name in values) + "</div>"


def word_lists(summary: dict[str, list[WordCount]]) -> str:
    """Most frequent words of each list, with their counts and shares."""
    tables = []
    for kind, words in summary.items():
        most = max((word.share for word in words), default=1)
        rows = "".join(
            f"<tr><td>{escape(word.word)}"
            f'<span class="st-bar" style="width: {100 * word.share / most:.0f}%"></span></td>'
            f'<td class="n">{word.count}</td><td class="n">{word.share:.0%}</td></tr>'
            for word in words[:LISTED]
        )
        plural = f"{kind}s" if len(words) != 1 else kind
        tables.append(f"<div><b>{len(words)} different {plural}</b><table>{rows}</table></div>")
    return f'<div class="st-lists">{"".join(tables)}</div>'


def analysis(result: Analysis, about: str, fps: float, mode: str) -> str:
    """A clip, its reconstruction and the numbers of both."""
    _, frames, height, width = result.original.shape
    numbers = [
        (f"{result.psnr:.1f} dB", "PSNR of the reconstruction"),
        (f"{result.output.layout.length:,}", "words"),
        (f"{result.bits:,.0f}", "bits"),
        (f"{result.bits_per_pixel:.3f}", "bits per pixel"),
        (f"{frames} x {height} x {width}", "frames x height x width"),
    ]
    clips, titles = (result.original, result.reconstruction), ("Original", "Reconstruction")
    return f"{hint(about)}{side_by_side(clips, titles, fps, mode)}{facts(numbers)}"


def words(result: Analysis, fps: float) -> str:
    """The words of a clip over its frames, and how often each occurs."""
    output = result.output
    drawn = overlay(result.original, output, cell=CELL)[:, :, :-FOOTER]
    texts = ("Motion: a verb and its adverbs in each cell", "Appearance: a noun and its adjectives in each cell")
    panels = zip(drawn.chunk(2, dim=3), texts, strict=True)
    shown = "".join(f"<div><b>{text}</b>{video_tag(panel, fps, text)}</div>" for panel, text in panels)
    least = READABLE * max(columns for _, columns in output.grids.values())
    style = f"grid-template-columns: repeat(auto-fit, minmax(min(100%, {least}px), 1fr))"
    note = "<p>Cells with the same verb or noun have the same colour.</p>"
    summary, order = output.summary(), ("verb", "adverb", "noun", "adjective")
    lists = word_lists({kind: summary[kind] for kind in order})
    return (
        f'<h3>Words at their positions</h3>{note}<div class="st-panels" style="{style}">{shown}</div>'
        f"<h3>Most frequent words</h3>{lists}"
    )
