"""Stage 2: decoder and pixel decoder are trained on pixels; encoder and codebooks are frozen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from omegaconf import MISSING
from torch import Tensor, nn

from sweettok import pixels
from sweettok.data.config import DataConfig
from sweettok.losses.config import DiscriminatorConfig, PixelLossConfig
from sweettok.stages.codes import released_parameter
from sweettok.stages.inputs import Inputs
from sweettok.stages.video import PixelLosses, TokenizerTask, clip_psnr, trained_module
from sweettok.tokenizer.model import SweetTok
from sweettok.train.config import OptimizerConfig, TrainConfig
from sweettok.train.task import StepContext


@dataclass(frozen=True)
class Stage2Run:
    """Fine-tune decoder and pixel decoder on pixels; encoder and codebooks are frozen."""

    stage: str = "stage2"
    tokenizer: str = MISSING  # output of stage 1: a folder, or the published file
    proxy: str | None = None  # with a published file of stage 1: the proxy that it was trained on
    prior: str | None = None  # with a published file of stage 1: the folder with the word graphs
    data: DataConfig = field(default_factory=DataConfig)
    loss: PixelLossConfig = field(default_factory=PixelLossConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


class Reconstructor(nn.Module):
    """Reconstructs clips; encoder, quantizers and the proxy's code table are frozen and stay in evaluation mode."""

    def __init__(self, tokenizer: SweetTok):
        super().__init__()
        self.tokenizer = tokenizer
        self.frozen = (tokenizer.encoder, tokenizer.spatial_quantizer, tokenizer.temporal_quantizer)
        for module in self.frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Reconstructor:
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> the same shape, not clamped."""
        with torch.no_grad():
            spatial, temporal = self.tokenizer.quantize(video)
        t = self.tokenizer.config.proxy.grid(*video.shape[2:])[0]
        return self.tokenizer.to_pixels(self.tokenizer.decoder(spatial.output, temporal.output, t))


class Stage2Task(TokenizerTask):
    """Trains decoder and pixel decoder, optionally with a discriminator."""

    name = "stage2"
    run_class = Stage2Run

    def __init__(self, run: Stage2Run, inputs: Inputs | None = None):
        self.run, inputs = run, inputs or Inputs()
        if inputs.readable and not Path(run.tokenizer).exists():
            raise FileNotFoundError(f"no tokenizer at {run.tokenizer}: set tokenizer (or STAGE1) to stage 1's output")
        self.model = inputs.tokenizer(run.tokenizer, run.proxy, run.prior)
        if self.model.temporal_quantizer is None:
            raise ValueError(f"{run.tokenizer} is the spatial branch alone: set tokenizer to the output of stage 1")
        if self.model.pixel_decoder is None:
            raise ValueError(f"{run.tokenizer} has no pixel decoder: set proxy to the proxy of stage 1")
        self.model.config = replace(self.model.config, pixel_path="expected")
        self.pixels = PixelLosses(run.loss, run.discriminator, run.discriminator_optimizer, run.train, inputs)
        self.trained = {
            "generator": trained_module(
                "generator", Reconstructor(self.model), run.optimizer, run.train, released_name=released_parameter
            )
        }
        if self.pixels.trained_discriminator is not None:
            self.trained["discriminator"] = self.pixels.trained_discriminator
        self.open_clips(inputs, run.data, self.model.config.proxy)

    @classmethod
    def saved_model(cls, run: Stage2Run, inputs: Inputs) -> SweetTok:
        return inputs.tokenizer(run.tokenizer, run.proxy, run.prior)

    def losses(self, batch: dict, context: StepContext) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        video = pixels.to_float(batch["video"])
        fake = self.trained["generator"].module(video)
        yield "generator", *self.pixels.generator(fake, video, context)
        if self.pixels.started(context):
            yield "discriminator", *self.pixels.discriminator(fake, video)

    @torch.no_grad()
    def validate(self, batch: dict) -> dict[str, Tensor]:
        video = pixels.to_float(batch["video"])
        return {"psnr": clip_psnr(self.model(video), video)}
