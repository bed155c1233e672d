"""Comparison of two reports, and a table and a plot of all reports of a folder."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from sweettok.eval.metrics import mean_with_interval
from sweettok.eval.report import DISTANCES, SCORES, figures, read_report
from sweettok.store import COMMENT, write_aside

COLUMNS = ("bits_per_clip", *SCORES, *DISTANCES)
AXES = {**DISTANCES, "psnr": "PSNR, dB"}  # y axes of the plot, in order of preference


def compare(first: str | Path, second: str | Path, force: bool = False) -> str:
    """A table of two reports and their differences, with 95% intervals of the differences of mean scores.

    Differences are paired if both reports are of the same clips. Raises ValueError if the protocols differ, unless
    `force`: then the table also shows the fields that differ.
    """
    one, other = read_report(first), read_report(second)
    protocols = one["protocol"], other["protocol"]
    different = [name for name in protocols[0] if name != "name" and protocols[0][name] != protocols[1][name]]
    if one["kind"] != other["kind"]:
        raise ValueError(f"{first} is a report of {one['kind']}, {second} of {other['kind']}")
    if different and not force:
        fields = ", ".join(f"{name} {one['protocol'][name]} | {other['protocol'][name]}" for name in different)
        raise ValueError(f"the protocols of these reports differ, their numbers must not be compared: {fields}")
    rows = [["", str(first), str(second), "difference"]]
    values = figures(one), figures(other)
    for name in COLUMNS:
        a, b = (value[name] for value in values)
        if a is not None or b is not None:
            difference = f"{b - a:+.3f}" if a is not None and b is not None else "-"
            rows.append([name, _figure(a), _figure(b), difference + _interval(one, other, name)])
    rows += [[name, str(one["protocol"][name]), str(other["protocol"][name]), "PROTOCOL DIFFERS"] for name in different]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _interval(one: dict[str, Any], other: dict[str, Any], name: str) -> str:
    """Half width of the 95% interval of a difference of mean scores, as text; empty if there is none."""
    sides = [{clip["key"]: clip.get(name) for clip in report["results"].get("clips", [])} for report in (one, other)]
    if name not in SCORES or not all(sides) or None in {*sides[0].values(), *sides[1].values()}:
        return ""
    if sides[0].keys() == sides[1].keys():
        half, kind = mean_with_interval([sides[1][key] - sides[0][key] for key in sides[0]])["interval95"], "paired"
    else:
        halves = [mean_with_interval(list(side.values()))["interval95"] for side in sides]
        half, kind = None if None in halves else math.hypot(*halves), "not paired"
    return "" if half is None else f" +- {half:.3f} ({kind})"


def table(folder: str | Path, plot: str | Path) -> str:
    """All reports of a folder as a Markdown table, and a PNG at `plot` of distance or PSNR against bits per clip.

    Only rows with the same protocol hash may be compared. The plot shows the reports of the most common protocol: their
    Frechet distances if all have one, else PSNR. Reports of an older format are listed as skipped. Raises ValueError
    if there are no reports.
    """
    found, skipped = find_reports(Path(folder))
    rows = [["report", "kind", "protocol", "clips", *COLUMNS], ["---"] * 4 + ["---:"] * len(COLUMNS)]
    for name, report in found.items():
        protocol = f"{report['protocol']['name']} {report['protocol_hash'][:8]}"
        numbers = [_figure(value) for value in figures(report).values()]
        rows.append([name, report["kind"], protocol, str(report["protocol"]["num_fake"]), *numbers])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, *(f"skipped: {reason}" for reason in skipped), _plot(found, plot)])


def find_reports(folder: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Reports below a folder as {path without suffix: report}, and the errors of those that could not be read."""
    found, skipped = {}, []
    for path in sorted(folder.rglob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            continue
        if isinstance(content, dict) and "protocol_hash" in content:
            try:
                found[path.relative_to(folder).with_suffix("").as_posix()] = read_report(path)
            except ValueError as error:
                skipped.append(str(error))
    if not found:
        raise ValueError("; ".join([f"{folder} holds no reports of `sweettok eval`", *skipped]))
    return found, skipped


def require_matplotlib() -> None:
    """Raise ImportError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'sweettok[plot]'") from error


def _plot(found: dict[str, dict[str, Any]], path: str | Path) -> str:
    """Draw the plot and return a line of text about it."""
    usable = {name: report for name, report in found.items() if figures(report)["bits_per_clip"]}
    if not usable:
        return "no plot: no report has bits per clip"
    common, _ = Counter(report["protocol_hash"] for report in usable.values()).most_common(1)[0]
    values = {name: figures(report) for name, report in usable.items() if report["protocol_hash"] == common}
    for column, title in AXES.items():
        points = {name: (value["bits_per_clip"], value[column]) for name, value in values.items()}
        if all(value is not None for _, value in points.values()):
            _scatter(path, points, title)
            return f"plot of {column} in {path}: {len(points)} of {len(found)} reports, those of protocol {common[:8]}"
    return "no plot: the reports have neither distances nor PSNR"


def _scatter(path: str | Path, points: dict[str, tuple[float, float]], title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot(xlabel="bits per clip", ylabel=title)
    axes.scatter(*zip(*points.values(), strict=True))
    for name, point in points.items():
        axes.annotate(name, point, textcoords="offset points", xytext=(6, 4))
    axes.margins(0.15)
    axes.grid(alpha=0.4)
    with write_aside(Path(path)) as aside:
        figure.savefig(aside, format="png", metadata={"Comment": COMMENT})


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
