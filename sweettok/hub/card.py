"""Model cards: the README.md of a saved model, with its sizes, settings, training and evaluation results."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

import sweettok
from sweettok.config import flatten, to_dict

MARK = "# written by sweettok ({}); an edited page is kept"  # {}: hash of the following lines
MARKED = re.compile(r"---\n" + re.escape(MARK).replace(r"\{\}", r"\w+") + r"\n")
METRICS = {"psnr": "PSNR, dB", "ssim": "SSIM", "motion": "PSNR of motion, dB", "lpips": "LPIPS"}
Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class CardInfo:
    """The parts of a card that depend on the model class.

    Args:
        summary: one sentence.
        tags: search tags of the Hub.
        sizes: model -> table rows (name, value).
        usage: model -> Python code that uses `model`.
        report: kind of the evaluation reports of this class, "rfvd" or "gfvd".
        role: key of the model in the "weights" of these reports.
        derived: settings that follow from others or from data; they are not listed.
        paper: name and arXiv number of the method.
    """

    summary: str
    tags: tuple[str, ...]
    sizes: Callable[[Any], Rows]
    usage: Callable[[Any], str]
    report: str = "rfvd"
    role: str = "tokenizer"
    derived: tuple[str, ...] = ()
    paper: tuple[str, str] = ("SweetTok", "2412.10443")


def write_card(
    model: Any,
    name: str,
    weights: str,
    training: Mapping[str, Any] | None,
    report: str | Path | Mapping[str, Any] | None,
    license: str | None,
) -> str:
    """Return the card as text; `weights` is the SHA-256 of model.safetensors, the rest as in `save_pretrained`."""
    info, title = model.card_info, type(model).__name__
    method, arxiv = info.paper
    data = ModelCardData(library_name="sweettok", license=license, tags=["sweettok", *info.tags, f"arxiv:{arxiv}"])
    sizes = [("parameters", f"{sum(p.numel() for p in model.parameters()):,}"), *info.sizes(model)]
    code = f"from sweettok import {title}\n\nmodel = {title}.from_pretrained({json.dumps(name)})\n{info.usage(model)}"
    parts = [
        f"# {title}",
        f"{info.summary} Made with `sweettok` {sweettok.__version__}, a reimplementation of {method} "
        f"([arXiv {arxiv}](https://arxiv.org/abs/{arxiv})).",
        f"## Use\n\n```python\n{code}\n```",
        f"## Sizes\n\n{_table(('', ''), [*sizes, ('SHA-256 of model.safetensors', f'`{weights}`')])}",
        f"## Settings\n\n{changed_settings(model.config, info.derived)}",
    ]
    if training:
        parts.append("## Training\n\n" + _table(("", ""), [(key, _plain(value)) for key, value in training.items()]))
    if report is not None:
        parts += ["## Measured", *_read_report(report, title, info, weights)]
    return _marked(f"{data.to_yaml().strip()}\n---\n\n" + "\n\n".join(parts) + "\n")


def is_edited(page: Path) -> bool:
    """Whether a card exists that was not written by `write_card`, or was changed afterwards."""
    if not page.is_file():
        return False
    text = page.read_text(encoding="utf-8", errors="replace")
    found = MARKED.match(text)
    return found is None or _marked(text[found.end() :]) != text


def _marked(body: str) -> str:
    return f"---\n{MARK.format(hashlib.sha256(body.encode()).hexdigest()[:16])}\n{body}"


def changed_settings(config: Any, derived: tuple[str, ...] = ()) -> str:
    """Table of the settings that differ from the defaults."""
    values, defaults = (flatten(to_dict(c)) for c in (config, type(config)()))
    names = [name for name in values if not set(derived) & set(name.split("."))]
    changed = [name for name in names if values[name] != defaults.get(name)]
    if not changed:
        return "All settings are the defaults."
    rows = [(f"`{name}`", f"`{_plain(values[name])}`", f"`{_plain(defaults.get(name))}`") for name in changed]
    return "Settings that differ from the defaults:\n\n" + _table(("setting", "here", "default"), rows)


def _read_report(report: str | Path | Mapping[str, Any], title: str, info: CardInfo, weights: str) -> list[str]:
    """Paragraphs about an evaluation report. ValueError if it is not a report of these weights."""
    name = "the report" if isinstance(report, Mapping) else str(report)
    try:
        content = report if isinstance(report, Mapping) else json.loads(Path(report).read_text(encoding="utf-8"))
        kind, measured = content["kind"], (content["weights"].get(info.role) or {}).get("model.safetensors")
        paragraphs = list(_report_parts(content))
    except ValueError as error:
        raise ValueError(f"{name} is not a report: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name} is not a report of `sweettok eval` ({type(error).__name__}: {error})") from error
    if kind != info.report:
        raise ValueError(f"{name} is of {kind}; a {title} is measured by {info.report}")
    if measured != weights and (measured or info.role == "tokenizer"):  # reports of video files name no generator
        found = f"the weights {measured[:12]}" if measured else "no weights"
        raise ValueError(f"{name} is of {found}, these are {weights[:12]}: measure these, or omit the report")
    return paragraphs


def _report_parts(report: Mapping[str, Any]) -> Iterator[str]:
    """Paragraphs and a table of the results, with the protocol of each."""
    protocol, results, kind = report["protocol"], report["results"], report["kind"]
    rows = []
    for part, scores in sorted(results.get("scores", {}).items(), key=lambda item: item[0] != "reconstruction"):
        suffix = "" if part == "reconstruction" else f" of the {part}, for comparison"
        rows += [(label + suffix, _score(scores[name])) for name, label in METRICS.items() if name in scores]
    distance = report.get("distance", kind)
    title = f"{kind[0]}FVD" if distance == kind else distance
    if distance in results:
        floor = results[distance]["noise_floor"]
        suffix = f"; two halves of the real clips: {floor['real_to_real']:.3f}" if floor is not None else ""
        rows.append((title, f"{results[distance]['value']:.3f}{suffix}"))
    for name, use in (results["usage"] or {}).items():
        value = f"{use['used']} of {use['words']}, perplexity {use['perplexity']:.1f}"
        rows.append((f"words used: {name}", value))
    clips = f"{protocol['num_fake']} clips"
    if not protocol["paired"]:
        clips = f"{protocol['num_fake']} against {protocol['num_real']} clips"
    where = clips, f"{protocol['name']} ({report['protocol_hash'][:12]})"
    size = f"{protocol['frames']} frames of {protocol['height']}x{protocol['width']}"
    yield (
        f"On {size}, split: {protocol['split']}. "
        "Scores are means over clips with 95% intervals. Numbers of different protocols must not be compared."
    )
    yield _table(("metric", "value", "on", "protocol (hash)"), [(*row, *where) for row in rows])
    if report[f"{kind}_refused"]:
        yield f"{title} was not measured: {report[f'{kind}_refused']}."
    yield from (f"Note: {note}." for note in report["notes"])


def _score(value: Mapping[str, Any]) -> str:
    interval = value["interval95"]
    return f"{value['mean']:.3f}" + (f" +- {interval:.3f}" if interval is not None else "")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in line)} |" for line in lines)
