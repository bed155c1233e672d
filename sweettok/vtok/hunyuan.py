"""HunyuanVideo and HunyuanVideo-1.5 of diffusers as video decoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sweettok.vtok.frozen import FrozenDecoder


class HunyuanDecoder(FrozenDecoder):
    """HunyuanVideo, whose own text states are the third from last of a LLaVA on Llama-3-8B (width 4096).

    `loss` and `sample` accept `pooled` (B, 768), the CLIP vectors of the prompts (see `pooled`); zeros by default.

    Args:
        guidance: scale that the model was distilled for, in samples; replaces a second pass.
        train_guidance: the same in training. 1, whose velocity is the one that the loss asks for.
    """

    pipeline_class = "HunyuanVideoPipeline"
    state_layer = -3

    def __init__(self, pipeline: Any, *, guidance: float = 6.0, train_guidance: float = 1.0, **options: Any):
        super().__init__(pipeline, **options)
        self.guidance, self.train_guidance = guidance, train_guidance
        if pipeline.text_encoder_2 is not None:
            self.text_encoder_2 = pipeline.text_encoder_2.requires_grad_(False).eval()  # moves with this module

    def condition(self, states: Tensor, mask: Tensor, pooled: Tensor | None = None) -> dict[str, Tensor]:
        guidance = torch.full((len(states),), 1000 * self.train_guidance, device=states.device, dtype=states.dtype)
        inputs = {"encoder_hidden_states": states, "encoder_attention_mask": mask, "guidance": guidance}
        return inputs | {"pooled_projections": self._pooled(states, pooled)}

    def prompt(self, states: Tensor, mask: Tensor, pooled: Tensor | None = None) -> dict[str, Tensor]:
        inputs = {"prompt_embeds": states, "prompt_attention_mask": mask}
        return inputs | {"pooled_prompt_embeds": self._pooled(states, pooled)}

    def guidance_options(self, cfg_scale: float) -> dict[str, Any]:
        return {"guidance_scale": self.guidance, "true_cfg_scale": cfg_scale}

    @torch.no_grad()
    def pooled(self, prompts: list[str]) -> Tensor:
        """CLIP vectors (B, 768) of prompts, by the pipeline's second text encoder."""
        return self.pipeline.encode_prompt(prompts, prompt_embeds=torch.empty(0))[1]

    def _pooled(self, states: Tensor, pooled: Tensor | None) -> Tensor:
        shape = len(states), self.transformer.config.pooled_projection_dim
        if pooled is None:
            return states.new_zeros(shape)
        if pooled.shape != shape:
            raise ValueError(f"pooled text must have shape {shape}, got {tuple(pooled.shape)}")
        return pooled.to(states)


class Hunyuan15Decoder(FrozenDecoder):
    """HunyuanVideo-1.5, whose own text states are the third from last of Qwen2.5-VL-7B (width 3584).

    Its second text encoder, for letters in the picture, and its image condition get nothing.
    """

    pipeline_class = "HunyuanVideo15Pipeline"
    unused = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    state_layer = -3

    def __init__(self, pipeline: Any, **options: Any):
        super().__init__(pipeline, **options)
        self.vae.enable_slicing()  # its attention fails on more than one clip (diffusers 0.42)

    def condition(self, states: Tensor, mask: Tensor) -> dict[str, Tensor]:
        letters, no_letters = self._no_letters(states)
        return {
            "encoder_hidden_states": states,
            "encoder_attention_mask": mask,
            "encoder_hidden_states_2": letters,
            "encoder_attention_mask_2": no_letters,
            "image_embeds": states.new_zeros(len(states), 1, self.transformer.config.image_embed_dim),
        }

    def prompt(self, states: Tensor, mask: Tensor) -> dict[str, Tensor]:
        letters, no_letters = self._no_letters(states)
        inputs = {"prompt_embeds": states, "prompt_embeds_mask": mask}
        return inputs | {"prompt_embeds_2": letters, "prompt_embeds_mask_2": no_letters}

    def guidance_options(self, cfg_scale: float) -> dict[str, Any]:
        self.pipeline.guider = self.pipeline.guider.new(guidance_scale=cfg_scale)
        return {}

    def velocity(self, noisy: Tensor, levels: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """As the base class; the channels of the image condition and its mask are zeros."""
        empty = noisy.new_zeros(len(noisy), noisy.shape[1] + 1, *noisy.shape[2:])
        return super().velocity(torch.cat((noisy, empty), dim=1), levels, inputs)

    def _no_letters(self, states: Tensor) -> tuple[Tensor, Tensor]:
        letters = states.new_zeros(len(states), 1, self.transformer.config.text_embed_2_dim)
        return letters, torch.zeros(letters.shape[:2], dtype=torch.int64, device=states.device)
