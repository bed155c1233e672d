"""Proxy training from scratch: clips and images, pixel losses, and a code table of moving averages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sweettok import pixels
from sweettok.data.config import DataConfig
from sweettok.losses.config import AdversarialConfig, DiscriminatorConfig, PerceptualConfig, PixelLossConfig
from sweettok.losses.terms import perceptual_frame_indices, pick_frames
from sweettok.proxy.config import ProxyConfig
from sweettok.proxy.model import ProxyOutput, ProxyTokenizer
from sweettok.stages.inputs import Inputs, image_size
from sweettok.stages.video import PixelLosses, TokenizerTask, WithImages, clip_psnr, trained_module
from sweettok.train.config import OptimizerConfig, TrainConfig
from sweettok.train.task import StepContext


@dataclass(frozen=True)
class ProxyLossConfig(PixelLossConfig):
    """Losses of the proxy tokenizer."""

    reconstruction: str = "l1"
    commitment_weight: float = 0.25  # of the squared distance between features and their codes
    perceptual: PerceptualConfig = field(default_factory=lambda: PerceptualConfig(kind="lpips", weight=4.0))
    adversarial: AdversarialConfig = field(
        default_factory=lambda: AdversarialConfig(feature_matching_weight=4.0, start_step=0)
    )


@dataclass(frozen=True)
class CodebookConfig:
    """Moving-average training of the proxy's code table."""

    decay: float = 0.99  # of the moving averages, for each step
    # Codes used less often than this share of the mean are replaced by features of the current batch; 0: never.
    dead_threshold: float = 0.05

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise ValueError(f"codebook.decay must be in [0, 1); got {self.decay}")


@dataclass(frozen=True)
class ProxyRun:
    """Train a proxy tokenizer from scratch on clips and images."""

    stage: str = "proxy"
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    images: str | None = None  # list or folder of images; null: random frames of the clips
    image_weight: float = 0.5  # weight of the loss of images, one for each clip; clips have 1 - image_weight
    data: DataConfig = field(default_factory=DataConfig)
    loss: ProxyLossConfig = field(default_factory=ProxyLossConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


class ClipsAndImages(nn.Module):
    """The proxy on clips and images in one forward, so that every step uses all parameters."""

    def __init__(self, proxy: ProxyTokenizer):
        super().__init__()
        self.proxy = proxy

    def forward(self, video: Tensor, image: Tensor) -> tuple[ProxyOutput, ProxyOutput]:
        return self.proxy(video), self.proxy(image)


class ProxyTask(TokenizerTask):
    """Trains the proxy; its code table is updated after each step."""

    name = "proxy"
    run_class = ProxyRun

    def __init__(self, run: ProxyRun, inputs: Inputs | None = None):
        self.run, inputs = run, inputs or Inputs()
        self.model = ProxyTokenizer(run.proxy)
        self.pixels = PixelLosses(run.loss, run.discriminator, run.discriminator_optimizer, run.train, inputs)
        self.trained = {"generator": trained_module("generator", ClipsAndImages(self.model), run.optimizer, run.train)}
        if self.pixels.trained_discriminator is not None:
            self.trained["discriminator"] = self.pixels.trained_discriminator
        self.open_clips(inputs, run.data, run.proxy)
        if run.images:
            images = inputs.clips(run.images, run.data, image_size(run.proxy), run.train.seed)
            self.train_dataset = WithImages(self.train_dataset, images)
        # Of each micro-batch, for clips and for images: features and their codes.
        self.chosen: list[list[tuple[Tensor, Tensor]]] = []

    def example_batch(self, size: int) -> dict[str, Tensor]:
        batch = super().example_batch(size)
        return batch | {"image": batch["video"][:, :, :1].clone()} if self.run.images else batch

    @property
    def tokens_per_clip(self) -> int:
        config = self.run.proxy
        return math.prod(config.grid(config.num_frames, config.height, config.width))

    def losses(self, batch: dict, context: StepContext) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        video = pixels.to_float(batch["video"])
        image = pixels.to_float(batch["image"]) if "image" in batch else single_frames(video, context)
        outputs = self.trained["generator"].module(video, image)
        self.chosen.append([(output.features.flatten(0, -2), output.codes.flatten()) for output in outputs])

        clip, still = outputs
        share, total, report = self.run.image_weight, 0.0, {}
        for prefix, weight, output, (loss, terms) in (
            ("", 1 - share, clip, self.pixels.generator(clip.video, video, context)),
            ("image_", share, still, self.pixels.still(still.video, image)),
        ):
            commitment = self.run.loss.commitment_weight * output.commitment
            total = total + weight * (loss + commitment)
            report |= {f"{prefix}{key}": value for key, value in terms.items()}
            report[f"{prefix}commitment_loss"] = output.commitment.detach()
            report[f"{prefix}commitment_weighted"] = commitment.detach()
        yield "generator", total, report
        if self.pixels.started(context):
            yield "discriminator", *self.pixels.discriminator(clip.video, video)

    def after_step(self, context: StepContext) -> dict[str, Tensor | float]:
        kinds = [[torch.cat(parts) for parts in zip(*kind, strict=True)] for kind in zip(*self.chosen, strict=True)]
        features, codes = [kind[0] for kind in kinds], torch.cat([kind[1] for kind in kinds])
        self.chosen.clear()
        config = self.run.codebook
        moved = self.model.codebook.update(
            features, codes, config.decay, config.dead_threshold, context.generator("dead codes")
        )
        return {"codes_moved": moved, "code_perplexity": self.model.codebook.perplexity()}

    @torch.no_grad()
    def validate(self, batch: dict) -> dict[str, Tensor]:
        video = pixels.to_float(batch["video"])
        fake = self.model(video).video
        image = self.model(video[:, :, :1]).video
        return {"psnr": clip_psnr(fake, video), "image_psnr": clip_psnr(image, video[:, :, :1])}

    def reconstruct(self, video: Tensor) -> Tensor:
        return self.model(video).video


def single_frames(video: Tensor, context: StepContext) -> Tensor:
    """One random frame of each clip: (B, 3, T, H, W) -> (B, 3, 1, H, W)."""
    draws = perceptual_frame_indices(context.global_batch, video.shape[2], context.generator("image frame"))
    return pick_frames(video, context.own(draws)).unsqueeze(2)
