"""Generators as models of transformers: names of the weights, and the files.

Learned positions make a GPT-2, rotary positions a GPT-NeoX with sequential residuals. Neither normalises queries and
keys: with `qk_norm` the folder has a few lines of Python that add it, for `trust_remote_code=True`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sweettok.generator.config import GeneratorConfig
from sweettok.generator.serving import SEQUENCE
from sweettok.layers.positions import THETA
from sweettok.store import write_aside

if TYPE_CHECKING:
    from sweettok.generator.model import Generator

MODULE = "modeling_clips"
QK_NORM = '''"""{base} with an RMS norm of the queries and keys of each head."""

import torch
from transformers import {base}


class Normed(torch.nn.Module):
    """The layer of queries, keys and values, which norms the first two."""

    def __init__(self, layer, heads, width):
        super().__init__()
        self.layer, self.heads = layer, heads
        self.q_norm, self.k_norm = (torch.nn.RMSNorm(width, eps=1e-6) for _ in range(2))

    def forward(self, x):
        q, k, v = self.layer(x).unflatten(-1, {sizes}).unbind({dim})
        return torch.stack((self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype), v), {dim}).flatten(-3)


class ClipForCausalLM({base}):
    def __init__(self, config):
        super().__init__(config)
        heads = config.num_attention_heads
        for block in self.{blocks}:
            block.{layer} = Normed(block.{layer}, heads, config.hidden_size // heads)
        self.post_init()
'''
FAMILIES: dict[str, dict[str, str]] = {
    "learned": {
        "base": "GPT2LMHeadModel",
        "sizes": "(3, self.heads, -1)",
        "dim": "-3",
        "blocks": "transformer.h",
        "layer": "attn.c_attn",
        "tokens": "transformer.wte",
        "positions": "transformer.wpe.weight",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "out": "attn.c_proj",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
        "norm": "transformer.ln_f",
    },
    "rotary": {
        "base": "GPTNeoXForCausalLM",
        "sizes": "(self.heads, 3, -1)",
        "dim": "-2",
        "blocks": "gpt_neox.layers",
        "layer": "attention.query_key_value",
        "tokens": "gpt_neox.embed_in",
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        "out": "attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
        "norm": "gpt_neox.final_layer_norm",
    },
}


def write_transformers(generator: Generator, folder: str | Path) -> None:
    """Write config.json, generation_config.json, model.safetensors, sequence.json and, with qk_norm, the module."""
    folder, config, sequence = Path(folder), generator.config, generator.sequence
    files = {
        "config.json": model_config(config, sequence.vocab_size, sequence.block_size),
        "generation_config.json": {"do_sample": True, "top_k": 0, "max_new_tokens": sequence.target_length - 1},
        SEQUENCE: {
            "tokenizer_hash": config.tokenizer_hash,
            "class_names": generator.class_names,
            **asdict(sequence),
            "prompt_length": sequence.prompt_length,
            "start": sequence.special_ids["sos"],
            "class_start": sequence.class_start,
            "word_start": sequence.word_start,
            "null_class_id": sequence.null_id,
            "target": [run._asdict() for run in sequence.runs],
        },
    }
    special = {"bos_token_id": sequence.special_ids["sos"]}
    special |= dict.fromkeys(("eos_token_id", "pad_token_id"), sequence.special_ids["tn"])
    files["config.json"] |= special
    files["generation_config.json"] |= special
    with write_aside(folder / "model.safetensors") as aside:
        save_file(weights(generator.transformer.state_dict(), config), aside, {"format": "pt"})
    if config.qk_norm:
        with write_aside(folder / f"{MODULE}.py") as aside:
            aside.write_text(QK_NORM.format_map(FAMILIES[config.positions]), encoding="utf-8")
    for name, content in files.items():
        with write_aside(folder / name) as aside:
            aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def model_config(config: GeneratorConfig, vocab_size: int, block_size: int) -> dict[str, Any]:
    """The content of config.json."""
    common: dict[str, Any] = {"vocab_size": vocab_size, "tie_word_embeddings": config.tied_head, "dtype": "float32"}
    if config.positions == "learned":
        common |= {"model_type": "gpt2", "n_embd": config.dim, "n_layer": config.num_layers, "n_head": config.num_heads}
        common |= {"n_positions": block_size, "n_inner": 4 * config.dim, "activation_function": "gelu"}
        common |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
        common |= {"layer_norm_epsilon": 1e-5, "architectures": ["GPT2LMHeadModel"]}
    else:
        common |= {"model_type": "gpt_neox", "hidden_size": config.dim, "intermediate_size": 4 * config.dim}
        common |= {"num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads}
        common |= {"max_position_embeddings": block_size, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
        common |= {"use_parallel_residual": False, "rotary_pct": 1.0, "rotary_emb_base": THETA}
        common |= {"architectures": ["GPTNeoXForCausalLM"]}
    if config.qk_norm:
        auto = {"AutoModelForCausalLM": f"{MODULE}.ClipForCausalLM"}
        common |= {"architectures": ["ClipForCausalLM"], "auto_map": auto}
    return common


def weights(state: dict[str, Tensor], config: GeneratorConfig) -> dict[str, Tensor]:
    """Our tensors by the names, and in the layouts, of transformers."""
    family, gpt2 = FAMILIES[config.positions], config.positions == "learned"
    names = {"tokens": family["tokens"], "norm": family["norm"], "head": "lm_head"}
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}.", f"{family['blocks']}.{i}."
        inner = "layer." if config.qk_norm else ""
        names |= {f"{ours}norm{k}": theirs + family[f"norm{k}"] for k in (1, 2)}
        names |= {f"{ours}attention.out": theirs + family["out"], f"{ours}mlp.0": theirs + family["up"]}
        names |= {f"{ours}mlp.2": theirs + family["down"]}
        names |= {f"{ours}attention.qkv": f"{theirs}{family['layer']}.{inner}".rstrip(".")}
        names |= {f"{ours}attention.{k}_norm": f"{theirs}{family['layer']}.{k}_norm" for k in ("q", "k")}
    result = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().float()
        if name == "positions":
            result[family["positions"]] = tensor.contiguous()
            continue
        module, _, kind = name.rpartition(".")
        if not gpt2:
            tensor = rotary_halves(module, tensor, config)
        linear = "attention.qkv" in module or "attention.out" in module or ".mlp." in module
        if gpt2 and linear and kind == "weight":
            tensor = tensor.T  # GPT-2 keeps (inputs, outputs)
        result[f"{names[module]}.{kind}"] = tensor.contiguous()
    return result


def rotary_halves(module: str, tensor: Tensor, config: GeneratorConfig) -> Tensor:
    """Queries, keys and their norms with the first channels of all rotated pairs before the second; qkv by heads."""
    order = torch.cat((torch.arange(0, config.head_dim, 2), torch.arange(1, config.head_dim, 2)))
    if module.endswith(("q_norm", "k_norm")):
        return tensor[order]
    if not module.endswith("attention.qkv"):
        return tensor
    q, k, v = tensor.unflatten(0, (3, config.num_heads, config.head_dim))
    return torch.stack((q[:, order], k[:, order], v), dim=1).flatten(0, 2)
