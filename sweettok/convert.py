"""Published weights <-> ours, through tables of names.

Each table renames our entries to the published ones by the first pattern that matches a prefix, then by the patterns
of a layer. What the published files hold without any effect on the output is listed and dropped on the way in, and
written with neutral values on the way out; anything else that is missing or left over is an error that lists it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    (r"first_frame\.0\.", "to_patch_emb_first_frame.1."),
    (r"first_frame\.1\.", "to_patch_emb_first_frame.2."),
    (r"first_frame\.2\.", "to_patch_emb_first_frame.3."),
    (r"tubes\.0\.", "to_patch_emb.1."),
    (r"tubes\.1\.", "to_patch_emb.2."),
    (r"tubes\.2\.", "to_patch_emb.3."),
)


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


@dataclass(frozen=True)
class Table:
    """Names of one kind of published file."""

    prefixes: tuple[tuple[str, str], ...]
    dropped: tuple[str, ...]  # published entries without effect on the output
    kept_here: tuple[str, ...] = ()  # our entries that published files do not hold

    def released_name(self, ours: str) -> str | None:
        """Published name of our state-dict entry; None where published files have none."""
        if any(re.search(pattern, ours) for pattern in self.kept_here):
            return None
        for pattern, name in self.prefixes:
            renamed, matches = re.subn(f"^{pattern}", name, ours)
            if matches:
                break
        else:
            raise KeyError(f"no published name for {ours!r}")
        for pattern, name in LAYER:
            renamed, matches = re.subn(pattern, name, renamed)
            if matches:
                break
        return renamed


PROXY = Table(
    prefixes=(
        *((rf"patches\.{pattern}", f"encoder.{name}") for pattern, name in PATCHES),
        (r"spatial\.", "encoder.enc_spatial_transformer."),
        (r"temporal\.", "encoder.enc_temporal_transformer."),
        (r"to_code\.", "pre_vq_conv.1."),
        *pixel_decoder("decoder", ""),
    ),
    dropped=(
        r"relative_position_index$", r"spatial_rel_pos_bias\.", r"codebook\.codebook_usage$",
        # training parts of the published checkpoint
        r"image_discriminator", r"video_discriminator", r"perceptual_model", r"context_norm",
    ),
)  # fmt: skip

TOKENIZER = Table(
    prefixes=(
        (r"encoder\.spatial_queries$", "latent_spatial_tokens"),
        (r"encoder\.temporal_queries$", "latent_temporal_tokens"),
        (r"encoder\.spatial_positions$", "encoder.spatial_latent_tokens_positional_embedding"),
        (r"encoder\.temporal_positions$", "encoder.temporal_latent_tokens_positional_embedding"),
        *((rf"encoder\.patches\.{pattern}", f"encoder.{name}") for pattern, name in PATCHES),
        (r"encoder\.spatial\.", "encoder.enc_spatial_transformer."),
        (r"encoder\.spatial_query\.", "encoder.enc_latent_spatial_transformer."),
        (r"encoder\.temporal\.", "encoder.enc_temporal_transformer."),
        (r"encoder\.temporal_query\.", "encoder.enc_latent_temporal_transformer."),
        (r"encoder\.spatial_out\.0\.", "encoder.ln_post_spatial."),
        (r"encoder\.spatial_out\.1\.", "encoder.conv_out."),
        (r"encoder\.spatial_out\.2\.", "pre_vq_conv_.1."),
        (r"encoder\.temporal_out\.0\.", "encoder.ln_post_temporal."),
        (r"encoder\.temporal_out\.1\.", "encoder.conv_out_temporal."),
        (r"encoder\.temporal_out\.2\.", "pre_vq_conv_temporal.1."),
        (r"spatial_quantizer\.codebook\.", "quantize.gcn."),
        (r"temporal_quantizer\.codebook\.", "quantize_temporal.gcn."),
        (r"decoder\.spatial_in\.0\.", "post_vq_conv_.1."),
        (r"decoder\.spatial_in\.1\.", "decoder.decoder_embed."),
        (r"decoder\.temporal_in\.0\.", "post_vq_conv_temporal.1."),
        (r"decoder\.temporal_in\.1\.", "decoder.decoder_embed_temporal."),
        (r"decoder\.spatial_positions$", "decoder.spatial_latent_tokens_positional_embedding"),
        (r"decoder\.temporal_positions$", "decoder.temporal_latent_tokens_positional_embedding"),
        (r"decoder\.positions$", "decoder.positional_embedding"),
        (r"decoder\.mask_token$", "decoder.mask_token"),
        (r"decoder\.spatial_latent\.", "decoder.dec_spatial_latent_transformer."),
        (r"decoder\.temporal_latent\.", "decoder.dec_temporal_latent_transformer."),
        (r"decoder\.spatial\.", "decoder.dec_spatial_transformer."),
        (r"decoder\.motion\.(\d+)\.norm_out\.", r"decoder.dec_temporal_transformer.\1.norm_out."),
        (r"decoder\.motion\.(\d+)\.", r"decoder.dec_temporal_transformer.\1.layers.0."),
        (r"decoder\.head\.0\.", "decoder.ln_post."),
        (r"decoder\.head\.1\.", "decoder.ffn.0."),
        (r"decoder\.head\.3\.", "decoder.ffn.2."),
        *pixel_decoder("pixel_decoder", "pixel_"),
    ),
    dropped=(
        r"relative_position_index$", r"spatial_rel_pos_bias\.", r"codebook_usage$", r"\.code_book_mapping\.",
        # final norms of stacks of which only the un-normed outputs are used
        r"^encoder\.enc_(spatial|temporal)_transformer\.norm_out\.",
        r"^decoder\.dec_(spatial|temporal)_latent_transformer\.norm_out\.",
        r"^decoder\.dec_temporal_transformer\.\d+\.norm_out\.",
        # queries and keys of self-attention on sequences of one token
        r"_(latent_temporal|temporal_latent)_transformer\.layers\.\d+\.1\.(norm|to_q|q_scale|k_scale)",
    ),
    kept_here=(r"codebook\.(vectors|edges)$",),
)  # fmt: skip


def read_weights(weights: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """Published entries from a file (`torch.save`, possibly under a `state_dict` key) or a mapping of arrays.

    Files are read with `weights_only=True`; classes of other libraries found beside the weights (a trainer's settings)
    are replaced by inert stand-ins. Raises FileNotFoundError, or ValueError when no weights are found.
    """
    if isinstance(weights, str | Path):
        path = Path(weights)
        if not path.is_file():
            raise FileNotFoundError(f"no weights at {path}")
        weights = load_file(path)
    if not isinstance(weights, Mapping):
        raise ValueError(f"weights must be a file or a mapping of names to arrays, got {type(weights).__name__}")
    if isinstance(weights.get("state_dict"), Mapping):
        weights = weights["state_dict"]
    if not weights:
        raise ValueError("the weights hold no entries")
    return {name: as_tensor(name, value) for name, value in weights.items()}


def as_tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"entry {name!r} of the weights is no array but a {type(value).__name__}") from error


def load_file(path: Path) -> dict:
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins = [(type(name.rpartition(".")[2], (StandIn,), {}), name) for name in unknown]
        with torch.serialization.safe_globals(stand_ins):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for files that are not what they should be
        raise ValueError(f"{path} cannot be read as weights: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a mapping of names to tensors")
    return dict(loaded)


class StandIn:
    """Takes the place of a class that is not needed to read weights, and does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def import_weights(
    ours: Mapping[str, Tensor], released: Mapping[str, Tensor], table: Table, partial: bool = False
) -> dict[str, Tensor]:
    """Published entries under our names, in our shapes; `ours` is the state dict to be filled.

    With `partial`, entries may be missing (a file of pretrained parts), but none may be left over.
    Raises ValueError that lists every missing, unexplained and misshapen entry.
    """
    left = {name for name in released if not any(re.search(pattern, name) for pattern in table.dropped)}
    found, missing, misshapen = {}, [], []
    for name, tensor in ours.items():
        theirs = table.released_name(name)
        if theirs is None:
            continue
        left.discard(theirs)
        if theirs not in released:
            missing.append(theirs)
            continue
        value = released[theirs].detach()
        if name.endswith("self_attn.to_v.weight") and len(value) == 2 * len(tensor):
            value = value.chunk(2)[1]
        if squeezed(value.shape) != squeezed(tensor.shape):
            misshapen.append(f"{theirs}: {tuple(value.shape)} given, {tuple(tensor.shape)} expected")
            continue
        found[name] = value.reshape(tensor.shape).to(tensor.dtype)
    problems = [
        f"{what} ({len(names)}): {', '.join(sorted(names)[:20])}{', ...' if len(names) > 20 else ''}"
        for what, names in (
            ("missing", [] if partial else missing), ("not explained by any table", left), ("wrong shape", misshapen),
        )
        if names
    ]  # fmt: skip
    if problems:
        raise ValueError("published weights do not fit this model. " + "; ".join(problems))
    return found


def squeezed(shape: torch.Size) -> tuple[int, ...]:
    """The published files keep some linear layers as 1x1 convolutions and some tables with leading ones."""
    return tuple(size for size in shape if size != 1)


def export_weights(ours: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Our entries under published names and shapes, without the entries that have no effect."""
    released = {}
    for name, tensor in ours.items():
        theirs = table.released_name(name)
        if theirs is None:
            continue
        value = tensor.detach().cpu().clone()
        if name.endswith("self_attn.to_v.weight"):
            value = torch.cat((torch.eye(*value.shape, dtype=value.dtype), value))  # any keys will do
        released[theirs] = value.reshape(published_shape(theirs, value))
    return released


def published_shape(name: str, value: Tensor) -> tuple[int, ...]:
    """The shape that the published file has for this entry."""
    if re.search(r"(^encoder\.conv_out(_temporal)?|^decoder\.ffn\.\d)\.weight$", name):
        return (*value.shape, 1, 1)
    if name == "decoder.mask_token":
        return (1, 1, *value.shape)
    return tuple(value.shape)
