"""A report as text."""

from __future__ import annotations

from typing import Any

COLUMNS = ("psnr", "ssim", "motion", "lpips")


def summary(report: dict[str, Any]) -> str:
    """What a reader wants to see of a report, in lines."""
    lines = _heading(report) + _scores(report["results"].get("scores", {})) + _usage(report["results"]["usage"])
    kind = report["kind"]
    name = kind[0] + kind[1:].upper()
    distance = report["results"].get(kind)
    if distance is not None:
        lines += _distance(name, distance)
    if report[f"{kind}_refused"]:
        lines.append(f"warning: {name} not measured: {report[f'{kind}_refused']}")
    return "\n".join(lines + [f"note: {note}" for note in report["notes"]])


def _heading(report: dict[str, Any]) -> list[str]:
    protocol, bits = report["protocol"], report["results"].get("bits_per_clip")
    told = f", {bits:.0f} bits each" if bits is not None else ""
    frames = f"{protocol['frames']} frames of {protocol['height']}x{protocol['width']}"
    clips = f"{protocol['num_real']} real and {protocol['num_fake']} generated clips"
    if protocol["paired"]:
        clips = f"{protocol['num_real']} clips and their reconstructions"
    return [f"protocol {protocol['name']} ({report['protocol_hash'][:12]}): {clips}, {frames}{told}"]


def _scores(scores: dict[str, Any]) -> list[str]:
    if not scores:
        return []
    lines = [f"{'':16}" + "".join(f"{name:>18}" for name in COLUMNS)]
    for kind, values in scores.items():
        lines.append(f"{kind:16}" + "".join(f"{_cell(values.get(name)):>18}" for name in COLUMNS))
    return lines


def _cell(score: dict[str, Any] | None) -> str:
    if score is None:
        return "-"
    return f"{score['mean']:.3f}" + (f" +- {score['interval95']:.3f}" if score["interval95"] is not None else "")


def _usage(usage: dict[str, Any] | None) -> list[str]:
    return [
        f"{name}: {use['used']} of {use['words']} words used ({use['used_fraction']:.1%}), "
        f"perplexity {use['perplexity']:.1f}"
        for name, use in (usage or {}).items()
    ]


def _distance(name: str, distance: dict[str, Any]) -> list[str]:
    lines = [f"{name}: {distance['value']:.3f}"]
    spread, floor = distance["bootstrap"], distance["noise_floor"]
    if spread is not None:
        low, high = spread["interval95"]
        lines[0] += f" ({low:.3f} to {high:.3f} in 95% of {spread['repeats']} redrawn sets)"
    if floor is not None:
        lines.append(f"noise floor: {floor['num_clips']} real clips are {floor['real_to_real']:.3f} from as many other "
                     f"real ones, and {floor['real_to_fake']:.3f} from as many fake ones")  # fmt: skip
    return lines
