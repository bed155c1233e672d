"""What a prior was built from and came to: numbers as JSON, frequency and degree curves as a drawing."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

from sweettok.priors.build import SIDES, Built, Rules
from sweettok.priors.captions import PARTS_OF_SPEECH
from sweettok.priors.graph import Prior, WordGraph

_PANEL, _LEFT, _TOP, _GAP = 380, 70, 40, 110
_COLORS = dict(zip(PARTS_OF_SPEECH, ("#c0392b", "#1f5fbf", "#d68910", "#1e8449"), strict=True))


def statistics(built: Built, rules: Rules) -> dict:
    """Plain numbers and strings. Shares are of all occurrences of that part of speech."""
    counts, told = built.counts, {}
    for side, parts in SIDES.items():
        graph = getattr(built.prior, side)
        lists = zip(parts, (graph.modifiers, graph.heads), _halves(graph, graph.counts), strict=True)
        for part, words, numbers in lists:
            kept, total = int(numbers.sum()), counts.occurrences[part]
            told[part] = {
                "words": len(words),
                "distinct_in_captions": counts.distinct and counts.distinct[part],
                "occurrences": kept,
                "share_of_occurrences": kept / total,
                "rarest_count": int(numbers.min()),
                "min_count": rules.least()[part],
            }
    return {
        "captions": counts.captions,
        "lists": told,
        "graphs": {side: _graph_statistics(getattr(built.prior, side)) for side in SIDES},
        "rules": {name: getattr(rules, name) for name in ("most", "neighbors", "min_shared", "max_weight")},
        "words_without_vector": len(built.unknown),
        "vectors_scaled_by": built.scale,
        "origin": built.prior.spatial.origin,
    }


def _graph_statistics(graph: WordGraph) -> dict:
    degrees = partners(graph)
    return {
        "width": graph.dim,
        "edges": graph.edges.shape[1],
        "pairs": int(degrees.sum()) // 2,
        "words_without_partner": int((degrees == 0).sum()),
        "partners_median": float(np.median(degrees)),
        "partners_most": int(degrees.max()),
    }


def partners(graph: WordGraph) -> np.ndarray:
    """int64 (V,), how many different words each word is connected to, itself left out."""
    first, second = graph.edges.sort(dim=0).values.numpy()
    pairs = np.unique(first * len(graph.words) + second)
    first, second = np.divmod(pairs, len(graph.words))
    ends = np.concatenate((first[first != second], second[first != second]))
    return np.bincount(ends, minlength=len(graph.words))


def _halves(graph: WordGraph, values: Sequence) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values)
    return values[: graph.num_modifiers], values[graph.num_modifiers :]


def curves(prior: Prior) -> str:
    """An SVG drawing: how often the words of each list were counted, and how many partners they have, by rank.

    ValueError for a prior without counts.
    """
    counted, connected = {}, {}
    for side, parts in SIDES.items():
        graph = getattr(prior, side)
        if graph.counts is None:
            raise ValueError("a prior without counts has no frequency curve")
        counted.update(zip(parts, _halves(graph, graph.counts), strict=True))
        connected.update(zip(parts, _halves(graph, partners(graph)), strict=True))
    width, height = _LEFT + 2 * _PANEL + _GAP + 20, _TOP + _PANEL + 60
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
            'font-size="12">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            *_panel(_LEFT, "occurrences", counted),
            *_panel(_LEFT + _PANEL + _GAP, "partners", connected),
            "</svg>\n",
        ]
    )


def _panel(left: float, title: str, values: dict[str, np.ndarray]) -> list[str]:
    """One pair of logarithmic axes, rank across; words without a value (0) have no point."""
    falling = {part: np.sort(numbers[numbers > 0])[::-1] for part, numbers in values.items()}
    ranks = _decades(max((len(numbers) for numbers in falling.values()), default=1))
    highest = _decades(max((int(numbers[0]) for numbers in falling.values() if len(numbers)), default=1))

    def place(rank: float, value: float) -> tuple[float, float]:
        across, up = math.log10(rank) / ranks, math.log10(value) / highest
        return left + across * _PANEL, _TOP + (1 - up) * _PANEL

    lines = [_text(left, _TOP - 12, title), _text(left + _PANEL / 2, _TOP + _PANEL + 40, "rank", "middle")]
    for power in range(ranks + 1):
        x, bottom = place(10**power, 1)
        lines += [_line([(x, _TOP), (x, bottom)], "#dddddd"), _text(x, bottom + 18, f"{10**power:,}", "middle")]
    for power in range(highest + 1):
        x, y = place(1, 10**power)
        lines += [_line([(x, y), (x + _PANEL, y)], "#dddddd"), _text(x - 8, y + 4, f"{10**power:,}", "end")]
    for row, (part, numbers) in enumerate(falling.items()):
        # Some hundred points draw the same line as ten thousand.
        shown = np.unique(np.geomspace(1, len(numbers), 200).round().astype(int)) if len(numbers) else []
        lines.append(_line([place(rank, numbers[rank - 1]) for rank in shown], _COLORS[part], 2))
        lines.append(_text(left + _PANEL - 6, _TOP + 16 + 16 * row, f"{part}s", "end", _COLORS[part]))
    return lines


def _decades(value: int) -> int:
    return max(1, math.ceil(math.log10(value)))


def _line(points: list[tuple[float, float]], color: str, width: int = 1) -> str:
    at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{at}" fill="none" stroke="{color}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", color: str = "black") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{html.escape(text)}</text>'
