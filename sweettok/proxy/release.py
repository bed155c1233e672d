"""Published names of the proxy, and what its published files hold without effect.

The rules of patches, layers and pixel decoder are those of the SweetTok release too, which was built from the proxy.
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
PATCHES = (
    (r"patches\.first_frame\.0\.", "encoder.to_patch_emb_first_frame.1."),
    (r"patches\.first_frame\.1\.", "encoder.to_patch_emb_first_frame.2."),
    (r"patches\.first_frame\.2\.", "encoder.to_patch_emb_first_frame.3."),
    (r"patches\.tubes\.0\.", "encoder.to_patch_emb.1."),
    (r"patches\.tubes\.1\.", "encoder.to_patch_emb.2."),
    (r"patches\.tubes\.2\.", "encoder.to_patch_emb.3."),
)
DROPPED = (r"relative_position_index$", r"spatial_rel_pos_bias\.", r"codebook_usage$")


def pixel_decoder(ours: str, prefix: str) -> tuple[tuple[str, str], ...]:
    """Rules for a pixel decoder that we call `ours`, whose published names start with `prefix`."""
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
    """Indices of window layers, usage of codes, and the position networks of the temporal layers, never applied.

    `temporal` is a pattern of the names of the temporal transformers that have such networks.
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
    """Weights and biases of linear layers, all zero."""
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
