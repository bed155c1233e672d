"""Names of the published proxy's entries.

The SweetTok release shares the rules for patches, layers and pixel decoder.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from sweettok.convert import Table
from sweettok.layers.attention import relative_position_index

LAYER = (
    (r"\.peg\.conv\.", ".0.dsconv."),
    (r"\.self_attn\.to_v\.", ".1.to_kv."),
    (r"\.self_attn\.", ".1."),
    (r"\.cross_attn\.", ".2."),
    (r"\.ff\.norm\.", ".3.0."),
    (r"\.ff\.up\.", ".3.1."),
    (r"\.ff\.down\.", ".3.4."),
)
PATCHES = tuple(
    (rf"patches\.{ours}\.{i}\.", f"encoder.{published}.{i + 1}.")
    for ours, published in (("first_frame", "to_patch_emb_first_frame"), ("tubes", "to_patch_emb"))
    for i in range(3)
)
DROPPED = (r"relative_position_index$", r"spatial_rel_pos_bias\.", r"codebook_usage$")


def pixel_decoder(ours: str, prefix: str) -> tuple[tuple[str, str], ...]:
    """Rules for the pixel decoder `ours`, whose published names start with `prefix`."""
    return (
        (rf"{ours}\.codebook\.embeddings$", f"{prefix}codebook.embeddings"),
        (rf"{ours}\.codebook\.counts$", f"{prefix}codebook.N"),
        (rf"{ours}\.codebook\.sums$", f"{prefix}codebook.z_avg"),
        (rf"{ours}\.from_code\.", f"{prefix}post_vq_conv.1."),
        (rf"{ours}\.temporal\.", f"{prefix}decoder.dec_temporal_transformer."),
        (rf"{ours}\.spatial\.", f"{prefix}decoder.dec_spatial_transformer."),
        (rf"{ours}\.unpatch\.first_frame\.", f"{prefix}decoder.to_pixels_first_frame.0."),
        (rf"{ours}\.unpatch\.tubes\.", f"{prefix}decoder.to_pixels.0."),
    )


def neutral_entries(released: dict[str, Tensor], temporal: str) -> dict[str, Tensor]:
    """Published entries without effect: indices of window layers, code usage, unused position networks.

    Args:
        temporal: pattern of the names of the temporal transformers that have such position networks.
    """
    found = {}
    for name, value in released.items():
        part, _, entry = name.rpartition(".")
        if entry == "relative_position_bias_table":
            found[f"{part}.relative_position_index"] = relative_position_index((math.isqrt(len(value)) + 1) // 2)
        elif part.endswith("codebook") and entry == "embeddings":
            found[f"{part}.codebook_usage"] = torch.zeros(len(value))
        elif re.search(rf"{temporal}\.layers\.\d+\.1\.to_q\.weight$", name):
            attention = part.removesuffix(".to_q")
            heads, dim = len(value) // len(released[f"{attention}.q_scale"]), value.shape[1]
            shapes = {"0.0": (dim, 2), "1.0": (dim, dim), "2": (heads, dim)}
            found |= zero_linears(f"{attention}.spatial_rel_pos_bias.net", shapes)
    return found


def zero_linears(prefix: str, shapes: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Zero weights and biases of linear layers."""
    return {
        f"{prefix}.{part}.{kind}": torch.zeros(shape if kind == "weight" else shape[:1])
        for part, shape in shapes.items()
        for kind in ("weight", "bias")
    }


PROXY = Table(
    prefixes=(
        *PATCHES,
        (r"spatial\.", "encoder.enc_spatial_transformer."),
        (r"temporal\.", "encoder.enc_temporal_transformer."),
        (r"to_code\.", "pre_vq_conv.1."),
        *pixel_decoder("decoder", ""),
    ),
    parts=LAYER,
    # The last four are training parts of the published checkpoint.
    dropped=(*DROPPED, "image_discriminator", "video_discriminator", "perceptual_model", "context_norm"),
    neutral=lambda released: neutral_entries(released, "_temporal_transformer"),
)
