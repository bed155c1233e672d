"""Reports beside each other: two of one protocol, or all of a folder as a table and a plot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweettok.eval.plot import scatter
from sweettok.eval.protocol import Protocol, differing_fields
from sweettok.eval.report import FORMAT

METRICS = ("psnr", "ssim", "motion", "lpips")
DISTANCES = ("rfvd", "gfvd")
COLUMNS = ("bits_per_clip", *METRICS, *DISTANCES)


def read_report(path: str | Path) -> dict[str, Any]:
    """A report from its file. FileNotFoundError, or ValueError for a file that is no report or that was altered."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no report at {path}")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        found = report["format"]
        if found != FORMAT:
            raise ValueError(f"its format is {found}, this version reads {FORMAT}")
        if Protocol(**report["protocol"]).hash != report["protocol_hash"]:
            raise ValueError("its protocol does not have the hash that it names")
        report["kind"], report["results"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no report of sweettok.eval: {error!r}") from error
    return report


def numbers(report: dict[str, Any]) -> dict[str, float | None]:
    """The figures of a report by the names in COLUMNS; None for what was not measured."""
    results = report["results"]
    scores = results.get("scores", {}).get("reconstruction", {})
    distances = {name: results[name]["value"] if name in results else None for name in DISTANCES}
    means = {name: scores[name]["mean"] if name in scores else None for name in METRICS}
    return {"bits_per_clip": results.get("bits_per_clip"), **means, **distances}


def compare(first: str | Path, second: str | Path, force: bool = False) -> str:
    """A table of two reports. ValueError naming the fields in which their protocols differ, unless `force`.

    Forced, the table tells those fields too.
    """
    one, other = read_report(first), read_report(second)
    different = [name for name in differing_fields(one["protocol"], other["protocol"]) if name != "name"]
    if one["kind"] != other["kind"]:
        raise ValueError(f"{first} is a report of {one['kind']}, {second} of {other['kind']}")
    if different and not force:
        told = "".join(f"\n  {name}: {one['protocol'][name]} | {other['protocol'][name]}" for name in different)
        raise ValueError(f"the protocols of these reports differ, their numbers must not be compared:{told}")
    rows = [["", str(first), str(second), "difference"]]
    values = numbers(one), numbers(other)
    for name in COLUMNS:
        a, b = (value[name] for value in values)
        if a is not None or b is not None:
            apart = f"{b - a:+.3f}" if a is not None and b is not None else "-"
            rows.append([name, _figure(a), _figure(b), apart])
    rows += [[name, str(one["protocol"][name]), str(other["protocol"][name]), "PROTOCOL DIFFERS"] for name in different]
    return _aligned(rows)


def table(folder: str | Path, plot: str | Path) -> str:
    """All reports of a folder as a Markdown table, and a picture of distance or PSNR against bits, a PNG at `plot`.

    Rows name their protocol's hash: only rows of one hash may be compared. The picture shows those of the commonest
    hash; their Frechet distance where all have one, else PSNR. ValueError when the folder holds no reports.
    """
    found = _reports(Path(folder))
    rows = [["report", "kind", "protocol", "clips", *COLUMNS], ["---"] * 4 + ["---:"] * len(COLUMNS)]
    for name, report in found.items():
        protocol = f"{report['protocol']['name']} {report['protocol_hash'][:8]}"
        figures = [_figure(value) for value in numbers(report).values()]
        rows.append([name, report["kind"], protocol, str(report["protocol"]["num_fake"]), *figures])
    return "\n".join(["| " + " | ".join(row) + " |" for row in rows] + [_plot(found, plot)])


def _reports(folder: Path) -> dict[str, dict[str, Any]]:
    """The reports below a folder by their paths in it; other JSON files are left alone."""
    found = {}
    for path in sorted(folder.rglob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            continue
        if isinstance(content, dict) and "protocol_hash" in content:
            found[path.relative_to(folder).with_suffix("").as_posix()] = read_report(path)
    if not found:
        raise ValueError(f"{folder}: no reports of sweettok.eval in it")
    return found


def _plot(found: dict[str, dict[str, Any]], path: str | Path) -> str:
    """Draw the picture, and say what it shows."""
    usable = {name: report for name, report in found.items() if numbers(report)["bits_per_clip"]}
    if not usable:
        return "no plot: no report tells bits per clip"
    common, _ = Counter(report["protocol_hash"] for report in usable.values()).most_common(1)[0]
    values = {name: numbers(report) for name, report in usable.items() if report["protocol_hash"] == common}
    for column, title in {"rfvd": "rFVD", "gfvd": "gFVD", "psnr": "PSNR, dB"}.items():
        points = {name: (value["bits_per_clip"], value[column]) for name, value in values.items()}
        if all(value is not None for _, value in points.values()):
            scatter(path, points, "bits per clip", title)
            return f"plot of {column} in {path}: {len(points)} of {len(found)} reports, those of protocol {common[:8]}"
    return "no plot: the reports tell neither distances nor PSNR"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
