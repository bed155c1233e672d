"""A model under published names, complete enough for a strict load elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sweettok.convert import Table, export_weights
from sweettok.layers.attention import SingleTokenAttention, Transformer, WindowAttention
from sweettok.proxy.model import PixelDecoder, ProxyTokenizer
from sweettok.tokenizer.codebook import LanguageCodebook
from sweettok.tokenizer.config import TokenizerConfig
from sweettok.tokenizer.decoder import MotionBlock


def released_state(model: nn.Module, table: Table) -> dict[str, Tensor]:
    """Published name -> tensor. Entries without effect, which our models do not have, get neutral values."""
    released = export_weights(model.state_dict(), table)
    for name, module in model.named_modules():
        for key, value in neutral_entries(module).items():
            released[table.released_name(f"{name}.{key}".lstrip("."))] = value
        if isinstance(module, LanguageCodebook) and "temporal" in name:
            released.update(unused_mapping(module))
        if isinstance(module, PixelDecoder):
            prefix = "" if isinstance(model, ProxyTokenizer) else "pixel_"
            released[f"{prefix}codebook.codebook_usage"] = torch.zeros(len(module.codebook.embeddings))
    return released


def neutral_entries(module: nn.Module) -> dict[str, Tensor]:
    """What the published form of `module` holds beside ours."""
    if isinstance(module, WindowAttention):
        return {"relative_position_index": module.relative_position_index.cpu().clone()}
    if isinstance(module, SingleTokenAttention):
        inner, dim = module.to_v.weight.shape
        scale = torch.ones(module.head_dim)
        return {
            "norm.gamma": torch.ones(dim),
            "norm.beta": torch.zeros(dim),
            "to_q.weight": torch.eye(inner, dim),
            "q_scale": scale,
            "k_scale": scale.clone(),
        }
    if isinstance(module, MotionBlock) or (isinstance(module, Transformer) and module.norm_out is None):
        dim = (module.ff if isinstance(module, MotionBlock) else module.layers[0].ff).down.weight.shape[0]
        return {"norm_out.gamma": torch.ones(dim), "norm_out.beta": torch.zeros(dim)}
    entries = {}
    if isinstance(module, ProxyTokenizer | PixelDecoder):
        for i, layer in enumerate(module.temporal.layers):
            entries |= position_bias(f"temporal.layers.{i}.self_attn.spatial_rel_pos_bias.net", layer.self_attn)
    return entries


def position_bias(prefix: str, attention: nn.Module) -> dict[str, Tensor]:
    """The relative position network that the proxy's temporal layers carry and never apply."""
    dim = attention.to_q.weight.shape[1]
    shapes = {"0.0": (dim, 2), "1.0": (dim, dim), "2": (attention.num_heads, dim)}
    return {
        f"{prefix}.{part}.{kind}": torch.zeros(shape if kind == "weight" else shape[:1])
        for part, shape in shapes.items()
        for kind in ("weight", "bias")
    }


def unused_mapping(codebook: LanguageCodebook) -> dict[str, Tensor]:
    """Two linear layers that the published temporal codebook carries and never applies."""
    hidden, width = codebook.conv1.lin.weight.shape
    out = len(codebook.conv2.bias)
    shapes = {"0": (hidden, width), "2": (out, hidden)}
    return {
        f"quantize_temporal.code_book_mapping.{part}.{kind}": torch.zeros(shape if kind == "weight" else shape[:1])
        for part, shape in shapes.items()
        for kind in ("weight", "bias")
    }


def check_published(config: TokenizerConfig) -> None:
    """ValueError for a tokenizer that published weights cannot fill."""
    if config.lookup == "union":
        raise ValueError(
            "published weights are of lookup modifiers_and_head, and tokenizer.lookup is union: their latents are two "
            "codes wide instead of one. Use folders written by save_pretrained or by training"
        )
