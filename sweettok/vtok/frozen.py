"""Frozen video models of diffusers as decoders: what HunyuanVideo and Wan share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sweettok.pixels import check_video
from sweettok.seeds import sample_noise
from sweettok.vtok.flow import Generators, check_batch, check_indices, check_size, check_states, flow_loss

if TYPE_CHECKING:
    from typing_extensions import Self

PIPELINE_MULTIPLE = 16  # pipelines refuse other heights and widths


class FrozenDecoder(nn.Module):
    """A pipeline of diffusers whose text states are replaced by states of a language model.

    The transformer and the VAE are frozen and stay in evaluation mode; `loss` passes gradients through the transformer
    to the states. Videos are (B, 3, T, H, W) in [-0.5, 0.5]; T is 1 more than a multiple of the VAE's temporal factor.

    Args:
        pipeline: with transformer, VAE and scheduler; text encoders may be None.
        gradient_checkpointing: recompute the transformer's layers in the backward pass, which saves memory.
    """

    pipeline_class: str  # of diffusers
    unused: tuple[str, ...] = ("text_encoder", "tokenizer")  # components that `from_pretrained` does not load
    state_layer: int

    def __init__(self, pipeline: Any, *, gradient_checkpointing: bool = False):
        super().__init__()
        self.pipeline, self.transformer, self.vae = pipeline, pipeline.transformer, pipeline.vae
        self.experts = [self.transformer]
        if getattr(pipeline, "transformer_2", None) is not None:
            self.transformer_2 = pipeline.transformer_2
            self.experts.append(self.transformer_2)
        pipeline.set_progress_bar_config(disable=True)
        settings = pipeline.scheduler.config
        self.shift = float(settings.get("shift") or settings.get("flow_shift") or 1.0)
        self.timesteps = settings.num_train_timesteps
        self.ratio, self.period = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
        if gradient_checkpointing:
            for expert in self.experts:
                expert.enable_gradient_checkpointing()
        self.requires_grad_(False)
        self.train(False)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, dtype: torch.dtype | None = None, **options: Any) -> Self:
        """A decoder from a folder or Hub repository of the pipeline, without the text encoders that states replace.

        Args:
            dtype: of all weights, for example torch.bfloat16.
            options: arguments of the class.

        Raises ImportError without diffusers.
        """
        try:
            import diffusers
        except ImportError as error:
            raise ImportError("video models of diffusers need it: pip install 'sweettok[vtok]'") from error
        skipped = dict.fromkeys(cls.unused)
        pipeline = getattr(diffusers, cls.pipeline_class).from_pretrained(source, dtype=dtype, **skipped)
        return cls(pipeline, **options)

    @property
    def state_dim(self) -> int:
        return self.transformer.config.text_embed_dim

    def train(self, mode: bool = True) -> Self:
        """Frozen models stay in evaluation mode."""
        return super().train(False)

    def loss(
        self,
        video: Tensor,
        states: Tensor,
        mask: Tensor | None = None,
        generator: Generators = None,
        **extra: Tensor,
    ) -> Tensor:
        """Flow-matching loss of the latents of a video, a scalar.

        Args:
            video: (B, 3, T, H, W) uint8, or float in [-0.5, 0.5].
            states: (B, L, state_dim).
            mask: (B, L), 0 for states to ignore; each row needs at least one other.
            generator: for latents, levels and noise.
            extra: other conditions of the model.

        Raises ValueError for other shapes, and sizes that the VAE cannot encode.
        """
        video = check_video(video, check_range=False)
        self._check(video.shape[2], tuple(video.shape[3:]), states, mask)
        check_batch(video, states)
        inputs = self.condition(*valid_first(self._cast(states), mask), **extra)

        def velocity(noisy: Tensor, levels: Tensor) -> Tensor:
            return self.velocity(noisy.to(self.transformer.dtype), levels, inputs)

        return flow_loss(velocity, self.latents(video, generator), self.shift, generator).mean()

    @torch.no_grad()
    def sample(
        self,
        states: Tensor,
        frames: int,
        size: int | tuple[int, int],
        *,
        mask: Tensor | None = None,
        negative: Tensor | None = None,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        steps: int = 50,
        cfg_scale: float = 1.0,
        **extra: Tensor,
    ) -> Tensor:
        """Videos (B, 3, frames, H, W) in [-0.5, 0.5], made by the pipeline from states (B, L, state_dim).

        A video depends on (seed, its index), its states and the settings; the batch only changes rounding.

        Args:
            size: (H, W), or one number for both.
            mask: as in `loss`.
            negative: (B, L, state_dim) states that guidance leads away from, such as those of an empty prompt.
            indices: of the samples; 0, 1, 2, ... by default.
            cfg_scale: classifier-free guidance with a second pass for `negative`; 1: none.
            extra: other conditions of the model.

        Raises ValueError for wrong shapes and sizes, and for guidance without `negative`.
        """
        height, width = self._check(frames, size, states, mask)
        if cfg_scale != 1 and negative is None:
            raise ValueError(f"cfg_scale {cfg_scale} needs `negative`, states of an empty prompt")
        channels = self.vae.config.get("latent_channels") or self.vae.config.z_dim
        shape = channels, (frames - 1) // self.period + 1, height // self.ratio, width // self.ratio
        noise = sample_noise(shape, seed, check_indices(indices, len(states)))
        prompt = self.prompt(*valid_first(self._cast(states), mask), **extra)
        if cfg_scale != 1:
            check_states(negative, None, self.state_dim)
            inputs = self.prompt(*valid_first(self._cast(negative), None))
            prompt |= {f"negative_{name}": value for name, value in inputs.items()}
        output = self.pipeline(
            **prompt,
            **self.guidance_options(cfg_scale),
            height=height,
            width=width,
            num_frames=frames,
            num_inference_steps=steps,
            latents=noise,
            output_type="pt",
        )
        return output.frames.float().transpose(1, 2) - 0.5

    @torch.no_grad()
    def latents(self, video: Tensor, generator: Generators = None) -> Tensor:
        """Video (B, 3, T, H, W) in [-0.5, 0.5] -> latents of unit scale, float32, drawn from the VAE's posterior."""
        posterior = self.vae.encode((2 * video).to(self.vae.device, self.vae.dtype)).latent_dist
        return self.normalize(posterior.sample(generator).float())

    def velocity(self, noisy: Tensor, levels: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Predicted velocity of noisy latents at levels (B,), given the transformer's other inputs."""
        timestep = (self.timesteps * levels).to(noisy.device)
        return self.transformer(hidden_states=noisy, timestep=timestep, return_dict=False, **inputs)[0]

    def normalize(self, latents: Tensor) -> Tensor:
        """Latents of the VAE -> latents of unit scale."""
        return latents * self.vae.config.scaling_factor

    def condition(self, states: Tensor, mask: Tensor, **extra: Tensor) -> dict[str, Tensor]:
        """Inputs of the transformer for states (B, L, state_dim) and mask (B, L), the valid ones first."""
        raise NotImplementedError

    def prompt(self, states: Tensor, mask: Tensor, **extra: Tensor) -> dict[str, Tensor]:
        """Arguments of the pipeline for the same; with `negative_` before their names they are those of guidance."""
        raise NotImplementedError

    def guidance_options(self, cfg_scale: float) -> dict[str, Any]:
        """Arguments of the pipeline that turn guidance on or off."""
        raise NotImplementedError

    def _cast(self, states: Tensor) -> Tensor:
        return states.to(self.transformer.device, self.transformer.dtype)

    def _check(self, frames: int, size: int | tuple[int, int], states: Tensor, mask: Tensor | None) -> tuple[int, int]:
        check_states(states, mask, self.state_dim)
        patch = self.transformer.config.patch_size
        multiple = self.ratio * (patch if isinstance(patch, int) else patch[1])
        return check_size(frames, size, self.period, math.lcm(multiple, PIPELINE_MULTIPLE))


def valid_first(states: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """States (B, L, D) with those of the mask first, in their order, then zeros; and the new mask (B, L), int64."""
    if mask is None:
        return states, torch.ones(states.shape[:2], dtype=torch.int64, device=states.device)
    mask, order = mask.to(states.device).bool().long().sort(dim=1, descending=True, stable=True)
    return states.gather(1, order[..., None].expand_as(states)) * mask[..., None].to(states.dtype), mask
