"""Sizes of published models, as their configurations on the Hub state them; for planning, nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch

from sweettok.vtok.backbone import default_dtype
from sweettok.vtok.text import require_transformers

LLAMA3_8B = {
    "vocab_size": 128320,  # with the tokens that LLaVA-NeXT adds
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
QWEN2_5_7B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128000,
    "tie_word_embeddings": False,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
}
SMALL_TOWER = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 3584}
# Class and configuration of `Backbone.architecture`; vision towers, which are not used, are left out or small.
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "llava-hf/llama3-llava-next-8b-hf": {"class": "LlamaForCausalLM", "config": LLAMA3_8B},
    "Qwen/Qwen2.5-VL-7B-Instruct": {
        "class": "Qwen2_5_VLForConditionalGeneration",
        "config": {"text_config": QWEN2_5_7B, "vision_config": SMALL_TOWER, "tie_word_embeddings": False},
    },
}
WAN_SMALL = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}  # 1.3B; defaults of diffusers: 14B


def language_model(name: str) -> dict[str, Any]:
    """`Backbone.architecture` of a model in a folder or on the Hub.

    Raises ValueError if it is neither at hand nor known here.
    """
    if name in LANGUAGE_MODELS:
        return LANGUAGE_MODELS[name]
    require_transformers()
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        known = ", ".join(LANGUAGE_MODELS)
        raise ValueError(f"the sizes of {name} are unknown: give its folder, or one of {known}") from error
    return {"class": config.architectures[0], "config": config.to_dict()}


def pipeline(kind: str, path: str, dtype: torch.dtype) -> Any:
    """A pipeline of diffusers with the sizes of a published model, without text encoders; `kind` as of a decoder."""
    import diffusers as df

    scheduler = df.FlowMatchEulerDiscreteScheduler(shift=7.0)
    parts: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer"))
    with default_dtype(dtype):
        if kind == "wan":
            sizes = WAN_SMALL if "1.3B" in path else {}
            parts |= {"transformer": df.WanTransformer3DModel(**sizes), "vae": df.AutoencoderKLWan()}
            return df.WanPipeline(scheduler=df.UniPCMultistepScheduler(flow_shift=3.0), **parts)
        parts |= dict.fromkeys(("text_encoder_2", "tokenizer_2"))
        if kind == "hunyuan":
            parts |= {"transformer": df.HunyuanVideoTransformer3DModel(), "vae": df.AutoencoderKLHunyuanVideo()}
            return df.HunyuanVideoPipeline(scheduler=scheduler, **parts)
        parts["transformer"] = df.HunyuanVideo15Transformer3DModel(task_type="t2v")
        guider = df.ClassifierFreeGuidance(guidance_scale=6.0)
        return df.HunyuanVideo15Pipeline(
            vae=df.AutoencoderKLHunyuanVideo15(), scheduler=scheduler, guider=guider, **parts
        )
