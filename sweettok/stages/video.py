"""Shared by the stages that train on clips: pixel losses with an optional discriminator, and sample videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import Dataset

from sweettok import pixels
from sweettok.data.config import DataConfig
from sweettok.data.writer import compare
from sweettok.layers.checkpointing import set_gradient_checkpointing
from sweettok.losses import terms as losses
from sweettok.losses.config import DiscriminatorConfig, PixelLossConfig
from sweettok.losses.discriminator import PatchDiscriminator
from sweettok.proxy.config import ProxyConfig
from sweettok.stages.inputs import Inputs
from sweettok.train.config import OptimizerConfig, TrainConfig
from sweettok.train.optim import make_optimizer, make_scheduler
from sweettok.train.task import StepContext, Task, TrainedModule


def trained_module(
    name: str,
    module: nn.Module,
    config: OptimizerConfig,
    train: TrainConfig,
    start_step: int = 0,
    released_name: Callable[[str], str | None] = lambda name: name,
) -> TrainedModule:
    """A module with the optimizer and schedule of its trainable parameters; also turns gradient checkpointing on."""
    set_gradient_checkpointing(module, train.gradient_checkpointing)
    optimizer = make_optimizer(module, config, released_name)
    scheduler = make_scheduler(optimizer, config, train.max_steps, start_step)
    return TrainedModule(name, module, optimizer, scheduler, config.max_grad_norm, start_step)


class DiscriminatorPair(nn.Module):
    """Logits of real clips and of reconstructions, in one forward."""

    def __init__(self, discriminator: PatchDiscriminator):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return self.discriminator(real)[-1], self.discriminator(fake)[-1]


class PixelLosses(nn.Module):
    """Reconstruction, perceptual and adversarial losses, with the discriminator and its optimizer.

    Attributes:
        trained_discriminator: for the task's `trained`; None without adversarial losses.
    """

    def __init__(
        self,
        loss: PixelLossConfig,
        discriminator: DiscriminatorConfig,
        optimizer: OptimizerConfig,
        train: TrainConfig,
        inputs: Inputs,
    ):
        super().__init__()
        self.config = loss
        self.perceptual = inputs.perceptual(loss.perceptual)
        self.trained_discriminator: TrainedModule | None = None
        weights = loss.adversarial
        used = weights.generator_weight > 0 or weights.feature_matching_weight > 0
        if used and weights.start_step < train.max_steps:
            pair = DiscriminatorPair(PatchDiscriminator(discriminator))
            self.trained_discriminator = trained_module("discriminator", pair, optimizer, train, weights.start_step)

    def started(self, context: StepContext) -> bool:
        """Whether the discriminator is used in this step."""
        return self.trained_discriminator is not None and context.step >= self.trained_discriminator.start_step

    def generator(self, fake: Tensor, real: Tensor, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of reconstructed clips; `fake` and `real` (B, 3, T, H, W) in [-0.5, 0.5].

        Returns the weighted total and scalars to log, as `weighted_sum` does.
        """
        generator = context.generator("perceptual frame")
        frames = context.own(losses.perceptual_frame_indices(context.global_batch, real.shape[2], generator))
        terms = self.similarity(fake, real, lambda clips: losses.pick_frames(clips, frames))
        if self.started(context):
            terms |= self.adversarial(fake, real)
        return weighted_sum(terms)

    def still(self, fake: Tensor, real: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of reconstructed images (B, 3, 1, H, W); without the discriminator, which is for clips."""
        return weighted_sum(self.similarity(fake, real, lambda clips: clips.squeeze(2)))

    def similarity(
        self, fake: Tensor, real: Tensor, pick: Callable[[Tensor], Tensor]
    ) -> dict[str, tuple[float, Tensor]]:
        """Reconstruction loss, and perceptual loss of one frame of each clip, which `pick` selects."""
        loss = losses.reconstruction_loss(fake, real, self.config.reconstruction)
        terms = {"reconstruction": (self.config.reconstruction_weight, loss)}
        if self.perceptual is not None:
            distance = self.perceptual(pick(fake), pick(real)).mean()
            terms["perceptual"] = (self.config.perceptual.weight, distance)
        return terms

    def adversarial(self, fake: Tensor, real: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Loss terms from the discriminator, without gradients to its weights."""
        weights, discriminator = self.config.adversarial, self.trained_discriminator.bare.discriminator
        frozen = {name: param.detach() for name, param in discriminator.named_parameters()}
        fake_features = functional_call(discriminator, frozen, (fake,))
        with torch.no_grad():
            real_features = discriminator(real)
        return {
            "adversarial": (weights.generator_weight, losses.generator_adversarial_loss(fake_features[-1])),
            "feature_matching": (
                weights.feature_matching_weight,
                losses.feature_matching_loss(fake_features, real_features),
            ),
        }

    def discriminator(self, fake: Tensor, real: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the discriminator, without gradients to the generator."""
        real_logits, fake_logits = self.trained_discriminator.module(real, fake.detach())
        hinge = losses.hinge_discriminator_loss(real_logits, fake_logits)
        total = self.config.adversarial.discriminator_weight * hinge
        report = {
            "discriminator_loss": hinge,
            "discriminator_weighted": total,
            "logits_real": real_logits.mean(),
            "logits_fake": fake_logits.mean(),
        }
        return total, {name: value.detach() for name, value in report.items()}


def weighted_sum(terms: dict[str, tuple[float, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    """{name: (weight, term)} -> the weighted sum, and all terms as `<name>_loss` and `<name>_weighted`."""
    total = sum(weight * term for weight, term in terms.values())
    report = {f"{name}_loss": term.detach() for name, (_, term) in terms.items()}
    report |= {f"{name}_weighted": (weight * term).detach() for name, (weight, term) in terms.items()}
    return total, report


def clip_psnr(fake: Tensor, real: Tensor) -> Tensor:
    """(B, 3, T, H, W) in [-0.5, 0.5] -> PSNR of each clip (B,) in dB, after rounding to bytes."""
    difference = pixels.to_uint8(fake).float() - pixels.to_uint8(real).float()
    return 10 * torch.log10(255**2 / difference.square().flatten(1).mean(1).clamp_min(1e-8))


class TokenizerTask(Task):
    """A stage that trains on clips and whose model reconstructs them."""

    clip_size: ProxyConfig

    def open_clips(self, inputs: Inputs, data: DataConfig, size: ProxyConfig) -> None:
        """Set the datasets and the model's preprocessing."""
        self.clip_size = size
        self.model.config = replace(self.model.config, preprocessing=data.preprocessing)
        self.train_dataset = inputs.clips(data.train, data, size, self.run.train.seed)
        self.validation_dataset = inputs.clips(data.validation, data, size) if data.validation else None

    def example_batch(self, size: int) -> dict[str, Tensor]:
        clip = self.clip_size
        return {"video": torch.zeros(size, 3, clip.num_frames, clip.height, clip.width, dtype=torch.uint8)}

    @property
    def tokens_per_clip(self) -> int:
        return self.model.layout.length

    def reconstruct(self, video: Tensor) -> Tensor:
        return self.model(video)

    @torch.no_grad()
    def sample(self, batch: dict) -> Tensor:
        """original | reconstruction | difference of each clip, uint8 (B, 3, T, H, 3 W)."""
        fake = pixels.to_uint8(self.reconstruct(pixels.to_float(batch["video"]))).cpu()
        pairs = zip(batch["video"].cpu(), fake, strict=True)
        return torch.stack([compare(original, reconstruction) for original, reconstruction in pairs])

    def export(self, folder: Path, training: Mapping[str, Any]) -> None:
        self.model.save_pretrained(folder, training=training)


class WithImages(Dataset):
    """Clips, each with an image of another dataset as `image`; the images are repeated in cycles."""

    def __init__(self, clips: Dataset, images: Dataset):
        self.clips, self.images = clips, images

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: tuple[int, int]) -> dict:
        epoch, index = item
        # Counted over all epochs, so that a longer list of images is used in full.
        number = epoch * len(self.clips) + index
        image, clip = self.images[number // len(self.images), number % len(self.images)], self.clips[item]
        problem = "; ".join(filter(None, (clip["problem"], image["problem"])))
        return {**clip, "image": image["video"], "problem": problem}
