"""Wan 2.1 and 2.2 of diffusers as video decoders."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sweettok.vtok.frozen import FrozenDecoder

TOKENS = 512  # of the text condition; shorter ones are padded with zeros, which are attended to


class WanDecoder(FrozenDecoder):
    """Wan, whose own text states are those of UMT5-XXL (width 4096): use it in an `AdaptedDecoder`.

    Wan 2.2 with two transformers uses the second one at levels below the pipeline's `boundary_ratio`.
    """

    pipeline_class = "WanPipeline"
    state_layer = -1

    @property
    def state_dim(self) -> int:
        return self.transformer.config.text_dim

    def condition(self, states: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"encoder_hidden_states": self._padded(states)}

    def prompt(self, states: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"prompt_embeds": self._padded(states)}

    def guidance_options(self, cfg_scale: float) -> dict[str, Any]:
        return {"guidance_scale": cfg_scale}

    def normalize(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        mean, std = (
            latents.new_tensor(values).view(-1, 1, 1, 1) for values in (config.latents_mean, config.latents_std)
        )
        return (latents - mean) / std

    def velocity(self, noisy: Tensor, levels: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """As the base class; each clip goes through the transformer of its level."""
        if len(self.experts) == 1:
            return self._run(self.transformer, noisy, levels, inputs)
        high, parts, order = levels >= self.pipeline.config.boundary_ratio, [], []
        for expert, chosen in zip(self.experts, (high, ~high), strict=True):
            rows = chosen.nonzero()[:, 0]
            if len(rows):
                there = rows.to(noisy.device)
                part = {name: value[there] for name, value in inputs.items()}
                parts.append(self._run(expert, noisy[there], levels[rows], part))
                order.append(rows)
        return torch.cat(parts)[torch.cat(order).argsort().to(noisy.device)]

    def _run(self, expert: Any, noisy: Tensor, levels: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        timestep = (self.timesteps * levels).to(noisy.device)
        if self.pipeline.config.expand_timesteps:  # Wan 2.2 TI2V: one timestep for each token
            _, rows, columns = expert.config.patch_size
            tokens = noisy.shape[2] * (noisy.shape[3] // rows) * (noisy.shape[4] // columns)
            timestep = timestep[:, None].expand(-1, tokens)
        return expert(hidden_states=noisy, timestep=timestep, return_dict=False, **inputs)[0]

    def _padded(self, states: Tensor) -> Tensor:
        if states.shape[1] > TOKENS:
            raise ValueError(f"Wan takes up to {TOKENS} states, got {states.shape[1]}: shorten the video or its rate")
        return F.pad(states, (0, 0, 0, TOKENS - states.shape[1]))
