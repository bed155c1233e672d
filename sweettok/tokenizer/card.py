"""Facts of SweetTok for its model cards."""

from __future__ import annotations

from typing import Any

from sweettok.hub import CardInfo
from sweettok.proxy.card import clip_size, encode_call


def layout_rows(layout: Any) -> list[tuple[str, ...]]:
    """Numbers of ids, bits and words, as rows of a card."""
    kind = "a clip" if layout.num_temporal else "an image"
    lists = [(f"{s.name} ids", f"{s.length:,}, each one of {s.vocab_size:,} words") for s in layout.segments]
    return [(f"ids of {kind}", f"{layout.length:,}"), (f"bits of {kind}", f"{layout.bits:,.0f}"), *lists]


def sizes(model: Any) -> list[tuple[str, ...]]:
    return [clip_size(model.config, not model.layout.num_temporal), *layout_rows(model.layout)]


def usage(model: Any) -> str:
    lines = [encode_call("out", model.config, not model.layout.num_temporal), "out.ids, out.words()"]
    return "\n".join(lines + ["video = model.decode(out.ids)"] * (model.config.pixel_path != "none"))


CARD = CardInfo(
    summary="A video tokenizer whose tokens are words: it turns clips into short sequences of ids, and ids into clips.",
    tags=("video", "video-tokenizer"),
    sizes=sizes,
    usage=usage,
    derived=("words",),
)
