"""Model card of the proxy tokenizer, and parts of the cards of both tokenizers."""

from __future__ import annotations

import math
from typing import Any

from sweettok.hub import CardInfo


def clip_size(config: Any, image: bool = False) -> tuple[str, str]:
    """Table row with the size of a clip or an image."""
    size = f"{config.height}x{config.width}"
    return ("image", size) if image else ("clip", f"{config.num_frames} frames of {size}")


def encode_call(output: str, config: Any, image: bool = False) -> str:
    """Line of Python that encodes a video."""
    shape = f"{config.height}, {config.width}" if image else f"{config.num_frames}, {config.height}, {config.width}"
    return f"{output} = model.encode(video)  # (B, 3, {shape}), uint8 or float in [-0.5, 0.5]"


def sizes(model: Any) -> list[tuple[str, ...]]:
    config = model.config
    t, h, w = config.grid(config.num_frames, config.height, config.width)
    bits = t * h * w * math.log2(config.num_codes)
    codes = f"{t}x{h}x{w}, each one of {config.num_codes:,}"
    return [clip_size(config), ("codes of a clip", codes), ("bits of a clip", f"{bits:,.0f}")]


CARD = CardInfo(
    summary="A video tokenizer of the OmniTokenizer architecture, with one grid of codes; SweetTok learns its codes.",
    tags=("video", "video-tokenizer"),
    sizes=sizes,
    usage=lambda model: encode_call("codes", model.config) + "\nvideo = model.decode(codes)",
)
