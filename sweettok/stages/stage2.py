"""Stage 2: decoder and pixel decoder are trained on pixels; encoder and codebooks are frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from omegaconf import MISSING
from torch import Tensor, nn

from sweettok import pixels
from sweettok.data.config import DataConfig
from sweettok.hub import find_shipped
from sweettok.losses.config import DiscriminatorConfig, PixelLossConfig, QuantizerLossConfig
from sweettok.stages.codes import quantizer_terms, released_parameter
from sweettok.stages.inputs import Inputs
from sweettok.stages.video import PixelLosses, TokenizerTask, clip_psnr, trained_module, weighted_sum
from sweettok.tokenizer.model import SweetTok
from sweettok.train.config import OptimizerConfig, TrainConfig
from sweettok.train.task import StepContext


@dataclass(frozen=True)
class Stage2LossConfig(PixelLossConfig):
    """Losses of stage 2."""

    # With `train_encoder`: losses between latents and codes of words.
    quantizer: QuantizerLossConfig = field(default_factory=QuantizerLossConfig)


@dataclass(frozen=True)
class Stage2Run:
    """Fine-tune decoder and pixel decoder on pixels; encoder and codebooks are frozen, or trained too."""

    stage: str = "stage2"
    tokenizer: str = MISSING  # output of stage 1: a folder, or the published file
    proxy: str | None = None  # with a published file of stage 1: the proxy that it was trained on
    prior: str | None = None  # with a published file of stage 1: the folder with the word graphs
    # Also train encoder and codebooks, on the pixels and the quantizer loss; the release freezes them. The result then
    # gives other tokens than stage 1.
    train_encoder: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    loss: Stage2LossConfig = field(default_factory=Stage2LossConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


class Reconstructor(nn.Module):
    """Reconstructs clips. Without `weights`, encoder and quantizers are frozen and stay in evaluation mode.

    Args:
        weights: of the quantizer loss, if encoder and quantizers are trained.
    """

    def __init__(self, tokenizer: SweetTok, weights: QuantizerLossConfig | None = None):
        super().__init__()
        self.tokenizer, self.weights = tokenizer, weights
        encoder = (tokenizer.encoder, tokenizer.spatial_quantizer, tokenizer.temporal_quantizer)
        self.frozen = encoder if weights is None else ()
        for module in self.frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Reconstructor:
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, video: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, 3, T, H, W) -> the same shape, not clamped; and `quantizer_terms`, empty without `weights`."""
        with nullcontext() if self.weights else torch.no_grad():
            spatial, temporal = lookups = self.tokenizer.quantize(video)
        t = self.tokenizer.config.proxy.grid(*video.shape[2:])[0]
        terms = quantizer_terms(lookups, self.weights) if self.weights else {}
        return self.tokenizer.to_pixels(self.tokenizer.decoder(spatial.output, temporal.output, t)), terms


class Stage2Task(TokenizerTask):
    """Trains decoder and pixel decoder, optionally with a discriminator."""

    name = "stage2"
    run_class = Stage2Run

    def __init__(self, run: Stage2Run, inputs: Inputs | None = None):
        self.run, inputs = run, inputs or Inputs()
        if inputs.readable and not Path(find_shipped(run.tokenizer)).exists():
            raise FileNotFoundError(f"no tokenizer at {run.tokenizer}: set tokenizer (or STAGE1) to stage 1's output")
        self.model = inputs.tokenizer(run.tokenizer, run.proxy, run.prior)
        if self.model.temporal_quantizer is None:
            raise ValueError(f"{run.tokenizer} is the spatial branch alone: set tokenizer to the output of stage 1")
        if self.model.pixel_decoder is None:
            raise ValueError(f"{run.tokenizer} has no pixel decoder: set proxy to the proxy of stage 1")
        self.model.config = replace(self.model.config, pixel_path="expected")
        self.pixels = PixelLosses(run.loss, run.discriminator, run.discriminator_optimizer, run.train, inputs)
        module = Reconstructor(self.model, run.loss.quantizer if run.train_encoder else None)
        trained = trained_module("generator", module, run.optimizer, run.train, released_name=released_parameter)
        self.trained = {"generator": trained}
        if self.pixels.trained_discriminator is not None:
            self.trained["discriminator"] = self.pixels.trained_discriminator
        self.open_clips(inputs, run.data, self.model.config.proxy)

    @classmethod
    def saved_model(cls, run: Stage2Run, inputs: Inputs) -> SweetTok:
        return inputs.tokenizer(run.tokenizer, run.proxy, run.prior)

    def losses(self, batch: dict, context: StepContext) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        video = pixels.to_float(batch["video"])
        context.seed_default_generators()  # dropout in the word graph must be equal on all processes
        fake, quantizer = self.trained["generator"].module(video)
        # Not kept in a variable: its graph would stay in memory during the discriminator's step.
        yield "generator", *self._generator(fake, video, quantizer, context)
        if self.pixels.started(context):
            yield "discriminator", *self.pixels.discriminator(fake, video)

    def _generator(
        self, fake: Tensor, video: Tensor, quantizer: dict[str, Tensor], context: StepContext
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixel losses, and the quantizer's terms if there are any: the total, and scalars to log."""
        total, report = self.pixels.generator(fake, video, context)
        weighted, scalars = weighted_sum(self.run.loss.quantizer.weighted(quantizer))
        return total + weighted, report | scalars

    @torch.no_grad()
    def validate(self, batch: dict) -> dict[str, Tensor]:
        video = pixels.to_float(batch["video"])
        return {"psnr": clip_psnr(self.model(video), video)}
