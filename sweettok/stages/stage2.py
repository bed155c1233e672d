"""Stage 2: decoder and pixel decoder learn on pixels; encoder and codebooks stay as stage 1 left them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Optional  # noqa: UP035  (OmegaConf reads these annotations)

import torch
from omegaconf import MISSING
from torch import Tensor, nn

from sweettok import pixels
from sweettok.data.config import DataConfig
from sweettok.layers.attention import set_gradient_checkpointing
from sweettok.losses.config import DiscriminatorConfig, PixelLossConfig
from sweettok.stages.stage1 import load_proxy, released_parameter
from sweettok.stages.video import PixelLosses, TokenizerTask, clip_psnr, trained_module
from sweettok.tokenizer.model import SweetTok
from sweettok.train.config import OptimizerConfig, TrainConfig
from sweettok.train.task import StepContext


@dataclass(frozen=True)
class Stage2Run:
    """Fine-tune decoder and pixel decoder on pixels; encoder and codebooks stay frozen."""

    stage: str = "stage2"
    tokenizer: str = MISSING  # output of stage 1: a folder of ours, or the published file
    proxy: Optional[str] = None  # noqa: UP045  (with a published stage-1 file: the proxy it was trained on)
    prior: Optional[str] = None  # noqa: UP045  (with a published stage-1 file: the folder with the word graphs)
    data: DataConfig = field(default_factory=DataConfig)
    loss: PixelLossConfig = field(default_factory=PixelLossConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def load_stage1(run: Stage2Run) -> SweetTok:
    """The tokenizer to fine-tune: a folder of ours, or a published file together with its proxy and prior."""
    if not Path(run.tokenizer).exists():
        raise FileNotFoundError(f"no tokenizer at {run.tokenizer}: set tokenizer (or STAGE1) to the output of stage 1")
    if Path(run.tokenizer).is_dir():
        unused = [name for name in ("proxy", "prior") if getattr(run, name)]
        if unused:
            raise ValueError(f"{run.tokenizer} holds its own proxy and prior: leave {' and '.join(unused)} empty")
        model = SweetTok.from_pretrained(run.tokenizer)
    else:
        if not run.prior:
            raise ValueError(f"{run.tokenizer} is a published file, which holds no word graphs: set prior=FOLDER")
        proxy = load_proxy(run.proxy) if run.proxy else None
        model = SweetTok.from_release(run.tokenizer, run.prior, proxy=proxy)
    if model.temporal_quantizer is None:
        raise ValueError(f"{run.tokenizer} is the spatial branch alone: set tokenizer to the output of stage 1")
    if model.pixel_decoder is None:
        raise ValueError(f"{run.tokenizer} holds no pixel decoder: set proxy to the proxy that stage 1 was trained on")
    model.config = replace(model.config, pixel_path="expected")
    return model


class Reconstructor(nn.Module):
    """Clips -> pixels, not clamped; encoder, quantizers and the code table are frozen and stay in evaluation mode."""

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
        with torch.no_grad():
            spatial, temporal = self.tokenizer.quantize(video)
        t = self.tokenizer.config.proxy.grid(*video.shape[2:])[0]
        return self.tokenizer.to_pixels(self.tokenizer.decoder(spatial.output, temporal.output, t))


class Stage2Task(TokenizerTask):
    name = "stage2"
    read_stage1 = staticmethod(load_stage1)

    def __init__(self, run: Stage2Run):
        self.run = run
        self.model = self.read_stage1(run)
        set_gradient_checkpointing(self.model, run.train.gradient_checkpointing)
        self.pixels = PixelLosses(run.loss, run.discriminator, run.discriminator_optimizer, run.train)
        self.perceptual = self.pixels.perceptual
        names = {"released_name": released_parameter}
        generator = trained_module("generator", Reconstructor(self.model), run.optimizer, run.train, **names)
        self.trained = {"generator": generator}
        if self.pixels.trained_discriminator is not None:
            self.trained["discriminator"] = self.pixels.trained_discriminator
        config = self.model.config.proxy
        self.train_dataset, self.validation_dataset = self.read_clips(run.data, config, run.train.seed)

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
