"""A small trained network between the states of a language model and a video decoder that expects others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweettok.config import positive
from sweettok.hub import CardInfo, Pretrained
from sweettok.vtok.flow import Generators, VideoDecoder


@dataclass(frozen=True)
class StateAdapterConfig:
    """Layer norm and an MLP of two layers."""

    state_dim: int = 4096  # width of the language model's states
    out_dim: int = 4096  # width of the decoder's states
    hidden_dim: int = 4096  # width of the MLP's hidden layer
    rms: float = 1.0  # root mean square of the output at first; set it to that of the states the decoder was trained on

    def __post_init__(self):
        positive(self, "adapter", "state_dim", "out_dim", "hidden_dim", "rms")


class StateAdapter(Pretrained):
    """States of a language model (..., state_dim) -> states for a decoder (..., out_dim), of a learned scale."""

    config_class = StateAdapterConfig
    card_info = CardInfo(
        summary="A small network that turns states of a language model into states for a video decoder.",
        tags=("video", "video-generation"),
        sizes=lambda model: [("widths", f"{model.config.state_dim} -> {model.config.out_dim}")],
        usage=lambda model: "states = model(states)",
        role="adapter",
    )

    def __init__(self, config: StateAdapterConfig):
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.state_dim)
        self.up = nn.Linear(config.state_dim, config.hidden_dim)
        self.down = nn.Linear(config.hidden_dim, config.out_dim)
        self.scale = nn.Parameter(torch.full((config.out_dim,), config.rms))

    def forward(self, states: Tensor) -> Tensor:
        out = self.down(F.gelu(self.up(self.norm(states))))
        return F.rms_norm(out, out.shape[-1:]) * self.scale


class AdaptedDecoder(nn.Module):
    """A frozen decoder behind a trained adapter, with the same two methods.

    Args:
        decoder: PixelFlow or a decoder of diffusers; it is frozen.
        state_layer: which hidden state of the language model the adapter gets.
    """

    def __init__(self, adapter: StateAdapter, decoder: VideoDecoder, state_layer: int = -1):
        super().__init__()
        if adapter.config.out_dim != decoder.state_dim:
            widths = f"{adapter.config.out_dim} and {decoder.state_dim}"
            raise ValueError(f"adapter.out_dim must be the width of the decoder's states; got {widths}")
        self.adapter, self.decoder = adapter, decoder.requires_grad_(False)
        self.state_dim, self.state_layer = adapter.config.state_dim, state_layer

    def train(self, mode: bool = True) -> AdaptedDecoder:
        """The decoder stays in evaluation mode."""
        super().train(mode)
        self.decoder.train(False)
        return self

    def loss(
        self,
        video: Tensor,
        states: Tensor,
        mask: Tensor | None = None,
        generator: Generators = None,
        **extra: Any,
    ) -> Tensor:
        return self.decoder.loss(video, self.adapter(states), mask, generator, **extra)

    @torch.no_grad()
    def sample(
        self,
        states: Tensor,
        frames: int,
        size: int | tuple[int, int],
        *,
        negative: Tensor | None = None,
        indices: Sequence[int] | None = None,
        **options: Any,
    ) -> Tensor:
        negative = None if negative is None else self.adapter(negative)
        return self.decoder.sample(self.adapter(states), frames, size, negative=negative, indices=indices, **options)
