"""Model card of the language model of VTok."""

from __future__ import annotations

from typing import Any

from sweettok.hub import CardInfo


def sizes(model: Any) -> list[tuple[str, ...]]:
    config = model.config
    trained = "adapters" if config.lora.rank else "nothing" if config.freeze else "all"
    return [
        ("language model", f"{model.backbone.architecture['class']}, width {model.width:,}"),
        ("base", config.base or "none, from random weights"),
        ("weights trained of the language model", trained),
        ("visual tokens", f"{config.visual_dim:,} channels"),
        ("generated video", f"{config.key_tokens} tokens and {config.tokens_per_second:g} for each second"),
        ("guidance", "possible" if config.caption_dropout else "not possible"),
    ]


CARD = CardInfo(
    summary="A language model that answers questions about videos and generates videos, as tokens of VTok.",
    tags=("video", "video-text-to-text", "text-to-video"),
    sizes=sizes,
    usage=lambda model: 'generated = model.generate("a red ball falls", seconds=1.0, seed=0)',
    report="gfvd",
    role="generator",
    derived=("template",),
    paper=("VTok", "2602.04202"),
)
