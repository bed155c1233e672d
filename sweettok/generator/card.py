"""Model card of the generator."""

from __future__ import annotations

import json
from typing import Any

from sweettok.hub import CardInfo
from sweettok.tokenizer.card import layout_rows


def sizes(model: Any) -> list[tuple[str, ...]]:
    config, sequence = model.config, model.sequence
    condition = f"{config.num_classes} classes" if config.num_classes else "nothing"
    if config.given_frames is not None:
        condition = f"{config.given_frames} given frames"
    return [
        ("layers", f"{config.num_layers} of width {config.dim:,}, {config.num_heads} heads"),
        ("conditioned on", condition),
        *([("classes", ", ".join(model.class_names))] if model.class_names else []),
        ("guidance", "possible" if sequence.null_class else "not possible"),
        ("vocabulary", f"{sequence.vocab_size:,}"),
        ("sequence length", f"{sequence.block_size:,}"),
        *layout_rows(config.layout),
        ("tokenizer", f"`{config.tokenizer_hash}` (its `ids_hash()`)"),
    ]


def usage(model: Any) -> str:
    argument = "num_samples=2"
    if model.sequence.given_clip:
        argument = "given=ids_of_given_frames"
    elif model.config.num_classes:
        argument = f"labels={json.dumps(list((model.class_names or range(model.config.num_classes))[:2]))}"
    return f"ids = model.sample({argument}, seed=0)  # decode them with the tokenizer"


CARD = CardInfo(
    summary="A transformer that generates video clips as token ids, which a SweetTok tokenizer decodes.",
    tags=("video", "video-generation"),
    sizes=sizes,
    usage=usage,
    report="gfvd",
    role="generator",
    derived=("layout", "num_classes", "tokenizer_hash"),
)
