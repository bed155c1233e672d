"""Reports: results, protocol, data and software versions, as JSON and as text. Equal runs give equal bytes."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sweettok
from sweettok.distributed import join_processes
from sweettok.eval.features import EFFICIENTNET
from sweettok.eval.protocol import Protocol
from sweettok.hub import CONFIG, WEIGHTS
from sweettok.store import sha256, write_aside

FORMAT = 3
PACKAGES = ("torch", "numpy", "scipy", "av")
SCORES = ("psnr", "ssim", "motion", "lpips")
KINDS = ("rfvd", "gfvd")
DISTANCES = {"rfvd": "rFVD", "gfvd": "gFVD", "frechet_efficientnet": "Frechet distance (EfficientNet)"}


def distance_name(kind: str, protocol: Protocol) -> str:
    """Name in DISTANCES of what a report of this kind and protocol measures."""
    return "frechet_efficientnet" if protocol.detector == EFFICIENTNET else kind


def make_report(
    kind: str, protocol: Protocol, results: dict[str, Any], refused: str | None, batch_size: int, **parts: Any
) -> dict[str, Any]:
    """A report as JSON data. kind: "rfvd" or "gfvd". refused: the reason if this distance was not measured."""
    return {
        "format": FORMAT,
        "kind": kind,
        "distance": distance_name(kind, protocol),
        "protocol": protocol.to_dict(),
        "protocol_hash": protocol.hash,
        "results": results,
        f"{kind}_refused": refused,
        "settings": {"batch_size": batch_size, "device": join_processes().device.type},
        "versions": versions(),
        **parts,
    }


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that results depend on."""
    ours = {"sweettok": sweettok.__version__, "python": platform.python_version()}
    return ours | {name: version(name) for name in PACKAGES}


def checkpoint_hashes(folder: str | Path) -> dict[str, str]:
    """SHA-256 of the files of a model."""
    return {name: sha256(Path(folder) / name) for name in (CONFIG, WEIGHTS)}


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` with sorted keys. ValueError for numbers that are not finite."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
    with write_aside(Path(path)) as aside:
        aside.write_text(text, encoding="utf-8")


def is_report(path: Path) -> bool:
    """Whether a file is empty or a report of any format, and may be replaced by a report."""
    try:
        text = path.read_text(encoding="utf-8")
        return not text.strip() or "protocol_hash" in dict(json.loads(text))
    except (ValueError, TypeError):
        return False


def has_kind(path: Path, ending: str) -> bool:
    """Whether a file is a report whose kind ends in `ending`, and may be replaced by one."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["kind"]).endswith(ending)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def read_report(path: str | Path) -> dict[str, Any]:
    """Read a report. FileNotFoundError, or ValueError for a file that is not a report of this format."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no report at {path}")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        found = report["format"]
        if found != FORMAT:
            raise ValueError(f"its format is {found}, this version reads {FORMAT}; measure again to compare it")
        protocol = Protocol(**report["protocol"])
        if protocol.hash != report["protocol_hash"]:
            raise ValueError("its protocol does not match its protocol_hash")
        if report["kind"] not in KINDS:
            raise ValueError(f"its kind is {report['kind']!r}, expected {' or '.join(KINDS)}")
        figures(report)
        return {**report, "kind": report["kind"], "results": report["results"], "protocol": protocol.to_dict()}
    except KeyError as error:
        raise ValueError(f"{path} is no report of `sweettok eval`: it has no entry {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no report of `sweettok eval` that can be read: {error}") from error


def figures(report: dict[str, Any]) -> dict[str, float | None]:
    """Bits per clip, mean scores and distances of a report; None if not measured."""
    results = report["results"]
    scores = results.get("scores", {}).get("reconstruction", {})
    means = {name: scores[name]["mean"] if name in scores else None for name in SCORES}
    distances = {name: results[name]["value"] if name in results else None for name in DISTANCES}
    return {"bits_per_clip": results.get("bits_per_clip"), **means, **distances}


def summary(report: dict[str, Any]) -> str:
    """Results and notes of a report as lines of text."""
    kind, results, protocol = report["kind"], report["results"], report["protocol"]
    clips = f"{protocol['num_real']} real and {protocol['num_fake']} generated clips"
    if protocol["paired"]:
        clips = f"{protocol['num_real']} clips and their reconstructions"
    frames = f"{protocol['frames']} frames of {protocol['height']}x{protocol['width']}"
    bits = f", {results['bits_per_clip']:.0f} bits each" if results.get("bits_per_clip") is not None else ""
    lines = [f"protocol {protocol['name']} ({report['protocol_hash'][:12]}): {clips}, {frames}{bits}"]
    if results.get("scores"):
        lines.append(" " * 16 + "".join(f"{name:>18}" for name in SCORES))
        for name, scores in results["scores"].items():
            lines.append(f"{name:16}" + "".join(f"{_cell(scores.get(metric)):>18}" for metric in SCORES))
    for name, use in (results["usage"] or {}).items():
        share = f"{use['used']} of {use['words']} words used ({use['used_fraction']:.1%})"
        lines.append(f"{name}: {share}, perplexity {use['perplexity']:.1f}")
    distance = report["distance"]
    if distance in results:
        lines += _distance(DISTANCES[distance], results[distance])
    if report[f"{kind}_refused"]:
        lines.append(f"warning: {DISTANCES[distance]} not measured: {report[f'{kind}_refused']}")
    return "\n".join(lines + [f"note: {note}" for note in report["notes"]])


def _cell(score: dict[str, Any] | None) -> str:
    if score is None:
        return "-"
    return f"{score['mean']:.3f}" + (f" +- {score['interval95']:.3f}" if score["interval95"] is not None else "")


def _distance(name: str, distance: dict[str, Any]) -> list[str]:
    lines = [f"{name}: {distance['value']:.3f}"]
    bootstrap, floor = distance["bootstrap"], distance["noise_floor"]
    if bootstrap is not None:
        low, high = bootstrap["interval95"]
        lines[0] += f" ({bootstrap['method']} of {bootstrap['repeats']} resampled sets: {low:.3f} to {high:.3f})"
    if floor is not None:
        lines.append(
            f"noise floor: {floor['real_to_real']:.3f} between two sets of {floor['num_clips']} real clips; "
            f"{floor['real_to_fake']:.3f} between as many real and fake clips"
        )
    return lines
