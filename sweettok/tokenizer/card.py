"""Model card of SweetTok."""

from __future__ import annotations

from typing import Any

from sweettok.hub import CardInfo
from sweettok.proxy.card import clip_size, encode_call


def layout_rows(layout: Any) -> list[tuple[str, ...]]:
    """Table rows: ids and bits of a clip, and the word lists."""
    unit = "a clip" if layout.num_temporal else "an image"
    lists = [
        (f"{part.name} ids", f"{part.length:,}, each one of {part.vocab_size:,} words") for part in layout.segments
    ]
    return [(f"ids of {unit}", f"{layout.length:,}"), (f"bits of {unit}", f"{layout.bits:,.0f}"), *lists]


def sizes(model: Any) -> list[tuple[str, ...]]:
    return [clip_size(model.config, not model.layout.num_temporal), *layout_rows(model.layout)]


def usage(model: Any) -> str:
    lines = [encode_call("out", model.config, not model.layout.num_temporal), "out.ids, out.words()"]
    return "\n".join(lines + ["video = model.decode(out.ids)"] * (model.config.pixel_path != "none"))


CARD = CardInfo(
    summary="A video tokenizer whose tokens are words: it turns clips into short strings of ids, and ids into clips.",
    tags=("video", "video-tokenizer"),
    sizes=sizes,
    usage=usage,
    derived=("words",),
)
