"""Facts of VTok for its model cards."""

from __future__ import annotations

from typing import Any

from sweettok.hub import CardInfo


def sizes(model: Any) -> list[tuple[str, ...]]:
    (height, width), config = model.encoder.size, model.config
    rate = f"every {config.frames_per_token} frames" if config.frames_per_token else f"{config.tokens_per_second:g}/s"
    return [
        ("frames", f"{height}x{width}"),
        ("tokens of the key frame", f"{config.grid[0]}x{config.grid[1]}"),
        ("sampled frames, one token each", rate),
        ("channels", f"{model.dim:,}"),
        ("tokens of 121 frames at 24 per second", f"{model.num_tokens(frames=121, fps=24)}"),
    ]


def usage(model: Any) -> str:
    return 'tokens = model.encode("clip.mp4")  # or pixels (B, 3, T, H, W) and fps=\ntokens.values, tokens.times'


CARD = CardInfo(
    summary="Videos for language models: the spatial tokens of one key frame, and one token for each later moment.",
    tags=("video", "video-tokenizer"),
    sizes=sizes,
    usage=usage,
    paper=("VTok", "2602.04202"),
)
