"""Model cards: the README.md of a folder of weights, from what the model and its measurements say of themselves."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sweettok
from sweettok.config import to_dict
from sweettok.generator.config import GeneratorConfig
from sweettok.hub import WEIGHTS
from sweettok.proxy.config import ProxyConfig
from sweettok.tokenizer.config import TokenizerConfig
from sweettok.tokenizer.layout import TokenLayout

MARK = "# written by sweettok ({}); an edited page is kept"
MARKED = re.compile(r"---\n" + re.escape(MARK).replace(r"\{\}", r"\w+") + r"\n")
FACTS = ("words", "layout", "num_classes", "tokenizer_hash")  # of a configuration, that no recipe chooses
METRICS = {"psnr": "PSNR, dB", "ssim": "SSIM", "motion": "PSNR of motion, dB", "lpips": "LPIPS"}
Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class Kind:
    """What cards say of one class of models: a sentence, tags, sizes, how to use it, and the reports that score it."""

    what: str
    tags: tuple[str, ...]
    sizes: Callable[[Any], Rows]
    usage: Callable[[Any], str]
    report: str


def write_card(
    model: Any,
    name: str,
    weights: str,
    training: Mapping[str, Any] | None,
    measured: Sequence[str],
    licence: str | None,
) -> str:
    """The page as text.

    Args:
        name: what to load it by.
        weights: SHA-256 of model.safetensors.
        training: facts of the run that made the weights.
        measured: what `read_report` gave.
        licence: of the weights, as the hub names licences; None says nothing.
    """
    from huggingface_hub import ModelCardData

    kind, title = KINDS[type(model.config)], type(model).__name__
    tags = ["sweettok", *kind.tags, "arxiv:2412.10443"]
    metadata = ModelCardData(library_name="sweettok", license=licence, tags=tags).to_yaml()
    parts = [
        f"# {title}",
        f"{kind.what} Made by the library `sweettok` {sweettok.__version__}, a reimplementation of SweetTok "
        "([arXiv 2412.10443](https://arxiv.org/abs/2412.10443)).",
        "## Use",
        f"```python\nfrom sweettok import {title}\n\nmodel = {title}.from_pretrained({json.dumps(name)})\n"
        f"{kind.usage(model)}```",
        "## Sizes",
        table(("", ""), [("parameters", f"{sum(p.numel() for p in model.parameters()):,}"), *kind.sizes(model),
                         ("SHA-256 of model.safetensors", f"`{weights}`")]),
        "## Recipe",
        *recipe(model.config),
    ]  # fmt: skip
    if training:
        parts += ["## Training", table(("", ""), [(key, plain(value)) for key, value in training.items()])]
    if measured:
        parts += ["## Measured", *measured]
    return marked(f"{metadata.strip()}\n---\n\n" + "\n\n".join(parts) + "\n")


# ----------------------------------------------------------------------------------------------------- edited pages


def marked(body: str) -> str:
    """A page whose first line of metadata tells whether what follows is still as it was written."""
    return f"---\n{MARK.format(hashlib.sha256(body.encode()).hexdigest()[:16])}\n{body}"


def is_edited(page: Path) -> bool:
    """Whether there is a page that `write_card` did not write, or that somebody has changed since."""
    if not page.is_file():
        return False
    text = page.read_text(encoding="utf-8", errors="replace")
    found = MARKED.match(text)
    return found is None or marked(text[found.end() :]) != text


# ---------------------------------------------------------------------------------------------------------- reports


def read_report(report: str | Path | Mapping[str, Any], model: Any, weights: str) -> list[str]:
    """What a report of `python -m sweettok.eval`, a file or its content, says of this model, in paragraphs.

    Raises ValueError for anything else, and for the report of other weights: it names the SHA-256 of their file. Only
    that of generated videos does not, and cannot be checked.
    """
    told, wanted = "the report", KINDS[type(model.config)].report
    part = "generator" if wanted == "gfvd" else "tokenizer"
    if not isinstance(report, Mapping):
        told = str(report)
        try:
            report = json.loads(Path(report).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{told} is no report: {error}") from error
    try:
        kind, scored = report["kind"], (report["weights"].get(part) or {}).get(WEIGHTS)
        paragraphs = list(report_parts(report))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{told} is no report of `python -m sweettok.eval`: give the file that its --out wrote "
                         f"({type(error).__name__}: {error})") from error  # fmt: skip
    if kind != wanted:
        raise ValueError(f"{told} is of {kind}; a {type(model).__name__} is scored by {wanted}")
    if scored != weights and (scored or part == "tokenizer"):
        names = f"the weights {scored[:12]}" if scored else "no weights"
        raise ValueError(f"{told} names {names}, these are {weights[:12]}: measure these, or leave it out")
    return paragraphs


def report_parts(report: Mapping[str, Any]) -> Iterator[str]:
    """What a report says, the protocol beside every number."""
    protocol, results, kind = report["protocol"], report["results"], report["kind"]
    label = f"{protocol['name']} ({report['protocol_hash'][:12]})"
    clips = f"{protocol['num_fake']} clips"
    if not protocol["paired"]:
        clips = f"{protocol['num_fake']} against {protocol['num_real']} clips"
    rows = []
    for side, values in sorted(results.get("scores", {}).items(), key=lambda scored: scored[0] != "reconstruction"):
        told = "" if side == "reconstruction" else f" of the {side}, for comparison"
        rows += [(METRICS[name] + told, score(values[name]), clips, label) for name in METRICS if name in values]
    if kind in results:
        rows.append((f"{kind[0]}FVD", distance(results[kind]), clips, label))
    for name, use in (results["usage"] or {}).items():
        used = f"{use['used']} of {use['words']}, perplexity {use['perplexity']:.1f}"
        rows.append((f"words used: {name}", used, clips, label))
    frames = f"{protocol['frames']} frames of {protocol['height']}x{protocol['width']}"
    yield (f"On {frames}, split: {protocol['split']}. Scores are means over clips, with 95% intervals. Numbers of "
           "different protocols must not be compared.")  # fmt: skip
    yield table(("metric", "value", "on", "protocol (hash)"), rows)
    if report[f"{kind}_refused"]:
        yield f"{kind[0]}FVD was not measured: {report[f'{kind}_refused']}."
    yield from (f"Note: {note}." for note in report["notes"])


def score(value: Mapping[str, Any]) -> str:
    interval = value["interval95"]
    return f"{value['mean']:.3f}" + (f" +- {interval:.3f}" if interval is not None else "")


def distance(value: Mapping[str, Any]) -> str:
    floor = value["noise_floor"]
    told = f"; halves of the real clips are {floor['real_to_real']:.3f} apart" if floor is not None else ""
    return f"{value['value']:.3f}{told}"


# ----------------------------------------------------------------------------------------------------------- models


def recipe(config: Any) -> Iterator[str]:
    """The settings that are not the defaults, which are the release's."""
    default = flat(to_dict(type(config)()))
    rows = [
        (f"`{name}`", f"`{plain(value)}`", f"`{plain(default[name])}`")
        for name, value in flat(to_dict(config)).items()
        if value != default[name]
    ]
    if rows:
        yield "Settings that differ from the release's:"
        yield table(("setting", "here", "release"), rows)
    else:
        yield "All settings are the release's."


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names -> values, without FACTS."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in FACTS:
            nested = isinstance(value, Mapping)
            found |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found


def plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def table(head: tuple[str, ...], rows: Rows) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in line)} |" for line in lines)


def clip_row(config: Any, images: bool = False) -> tuple[str, str]:
    size = f"{config.height}x{config.width}"
    return ("image", size) if images else ("clip", f"{config.num_frames} frames of {size}")


def layout_rows(layout: TokenLayout) -> Rows:
    what = "a clip" if layout.num_temporal else "an image"
    lists = [(f"{s.name} ids", f"{s.length:,}, each one of {s.vocab_size:,} words") for s in layout.segments]
    return [(f"ids of {what}", f"{layout.length:,}"), (f"bits of {what}", f"{layout.bits:,.0f}"), *lists]


def tokenizer_sizes(model: Any) -> Rows:
    return [clip_row(model.config, not model.layout.num_temporal), *layout_rows(model.layout)]


def proxy_sizes(model: Any) -> Rows:
    config = model.config
    t, h, w = config.grid(config.num_frames, config.height, config.width)
    bits = t * h * w * math.log2(config.num_codes)
    return [
        clip_row(config), ("codes of a clip", f"{t}x{h}x{w}, each one of {config.num_codes:,}"),
        ("bits of a clip", f"{bits:,.0f}"),
    ]  # fmt: skip


def generator_sizes(model: Any) -> Rows:
    config, sequence = model.config, model.sequence
    told = f"{config.num_classes} classes" if config.num_classes else "nothing"
    if config.given_frames is not None:
        told = f"{config.given_frames} given frames"
    names = [("classes", ", ".join(model.class_names))] if model.class_names else []
    return [
        ("layers", f"{config.num_layers} of width {config.dim:,}, {config.num_heads} heads"), ("conditioned on", told),
        *names, ("guidance", "possible" if sequence.null_class else "not possible"),
        ("vocabulary", f"{sequence.vocab_size:,}"), ("places", f"{sequence.block_size:,}"), *layout_rows(config.layout),
        ("ids of the tokenizer", f"`{config.tokenizer_hash}` (its `ids_hash()`)"),
    ]  # fmt: skip


def encode_line(output: str, config: Any, images: bool = False) -> str:
    size = f"{config.height}, {config.width}" if images else f"{config.num_frames}, {config.height}, {config.width}"
    return f"{output} = model.encode(video)  # (B, 3, {size}), uint8 or float in [-0.5, 0.5]\n"


def tokenizer_usage(model: Any) -> str:
    told = encode_line("out", model.config, not model.layout.num_temporal) + "out.ids, out.words()\n"
    return told + ("" if model.config.pixel_path == "none" else "video = model.decode(out.ids)\n")


def proxy_usage(model: Any) -> str:
    return encode_line("codes", model.config) + "video = model.decode(codes)\n"


def generator_usage(model: Any) -> str:
    asked = "num_samples=2"
    if model.sequence.given_clip:
        asked = "given=ids_of_given_frames"
    elif model.config.num_classes:
        asked = f"labels={json.dumps(list((model.class_names or range(model.config.num_classes))[:2]))}"
    return f"ids = model.sample({asked}, seed=0)  # for the tokenizer's decode\n"


KINDS = {
    TokenizerConfig: Kind(
        "A video tokenizer whose tokens are words: clips become short strings of ids, and ids become clips.",
        ("video", "video-tokenizer"), tokenizer_sizes, tokenizer_usage, "rfvd",
    ),
    ProxyConfig: Kind(
        "A video tokenizer of the OmniTokenizer kind, with one grid of codes; SweetTok is trained on its codes.",
        ("video", "video-tokenizer"), proxy_sizes, proxy_usage, "rfvd",
    ),
    GeneratorConfig: Kind(
        "A transformer that writes video clips as the ids of a SweetTok tokenizer, which decodes them.",
        ("video", "video-generation"), generator_sizes, generator_usage, "gfvd",
    ),
}  # fmt: skip
