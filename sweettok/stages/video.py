"""What the tokenizer stages share: clips in, pixel losses with an optional discriminator, and videos to look at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import Dataset

from sweettok import pixels
from sweettok.data.config import DataConfig
from sweettok.data.dataset import ClipDataset
from sweettok.data.lists import load_clips
from sweettok.data.writer import compare
from sweettok.losses import terms as losses
from sweettok.losses.config import AdversarialConfig, DiscriminatorConfig, PixelLossConfig
from sweettok.losses.discriminator import PatchDiscriminator
from sweettok.losses.weights import load_perceptual
from sweettok.proxy.config import ProxyConfig
from sweettok.train.config import OptimizerConfig, TrainConfig
from sweettok.train.optim import make_optimizer, make_scheduler
from sweettok.train.task import StepContext, Task, TrainedModule


def clip_datasets(data: DataConfig, proxy: ProxyConfig, seed: int) -> tuple[ClipDataset, ClipDataset | None]:
    """Training clips with random starts, and validation clips from the middle, at the size of the proxy's grid.

    Clips that cannot be read are replaced in training, and an error in validation, whose numbers would change.
    """

    def dataset(source: str, position: str, substitute: bool) -> ClipDataset:
        return ClipDataset(
            load_clips(source, data.root), proxy.num_frames, (proxy.height, proxy.width), position, data.stride,
            data.resize, data.short, seed, timeout=data.read_timeout, substitute=substitute,
        )  # fmt: skip

    return dataset(data.train, "random", True), dataset(data.validation, "center", False) if data.validation else None


def image_dataset(source: str, data: DataConfig, proxy: ProxyConfig, seed: int) -> ClipDataset:
    """Still images, or one random frame of each video, from a list or folder; for training."""
    return ClipDataset(
        load_clips(source, data.root), 1, (proxy.height, proxy.width), "random", resize=data.resize, seed=seed,
        timeout=data.read_timeout, substitute=True,
    )  # fmt: skip


def still_dataset(data: DataConfig, proxy: ProxyConfig) -> ClipDataset | None:
    """For validation: images, or the middle frame of each video."""
    if not data.validation:
        return None
    return ClipDataset(
        load_clips(data.validation, data.root), 1, (proxy.height, proxy.width), resize=data.resize,
        timeout=data.read_timeout,
    )  # fmt: skip


def trained_module(
    name: str, module: nn.Module, config: OptimizerConfig, train: TrainConfig, start_step: int = 0, **names
) -> TrainedModule:
    """A module's trainable parameters with their optimizer and schedule."""
    optimizer = make_optimizer(module, config, **names)
    scheduler = make_scheduler(optimizer, config, train.max_steps, start_step)
    return TrainedModule(name, module, optimizer, scheduler, config.max_grad_norm, start_step)


class DiscriminatorPair(nn.Module):
    """Real clips and reconstructions through the discriminator, one after the other, as its loss needs them."""

    def __init__(self, discriminator: PatchDiscriminator):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return self.discriminator(real)[-1], self.discriminator(fake)[-1]


class PixelLosses:
    """Reconstruction, perceptual and adversarial terms of a generator, and the discriminator that plays against it."""

    def __init__(
        self,
        loss: PixelLossConfig,
        discriminator: DiscriminatorConfig,
        optimizer: OptimizerConfig,
        train: TrainConfig,
    ):
        self.config = loss
        self.perceptual = load_perceptual(loss.perceptual)
        self.trained_discriminator: TrainedModule | None = None
        if is_adversarial(loss.adversarial) and loss.adversarial.start_step < train.max_steps:
            pair = DiscriminatorPair(PatchDiscriminator(discriminator))
            self.trained_discriminator = trained_module(
                "discriminator", pair, optimizer, train, loss.adversarial.start_step
            )

    def started(self, context: StepContext) -> bool:
        return self.trained_discriminator is not None and context.step >= self.trained_discriminator.start_step

    def generator(self, fake: Tensor, real: Tensor, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """fake, real (B, 3, T, H, W) -> weighted total, and every term as it is and as it counts."""
        weights = self.config
        terms = {
            "reconstruction": (
                weights.reconstruction_weight,
                losses.reconstruction_loss(fake, real, weights.reconstruction),
            )
        }
        if self.perceptual is not None:
            draws = losses.perceptual_frame_indices(
                context.global_batch, real.shape[2], context.generator("perceptual frame")
            )
            frames = context.own(draws)
            distance = self.perceptual(losses.pick_frames(fake, frames), losses.pick_frames(real, frames)).mean()
            terms["perceptual"] = (weights.perceptual.weight, distance)
        if self.started(context):
            terms |= self.adversarial(fake, real, weights.adversarial)
        return weighted_sum(terms)

    def still(self, fake: Tensor, real: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Terms of images (B, 3, 1, H, W): reconstruction and perceptual, no discriminator, which judges motion too."""
        weights = self.config
        reconstruction = losses.reconstruction_loss(fake, real, weights.reconstruction)
        terms = {"reconstruction": (weights.reconstruction_weight, reconstruction)}
        if self.perceptual is not None:
            distance = self.perceptual(fake.squeeze(2), real.squeeze(2)).mean()
            terms["perceptual"] = (weights.perceptual.weight, distance)
        return weighted_sum(terms)

    def adversarial(self, fake: Tensor, real: Tensor, weights: AdversarialConfig) -> dict[str, tuple[float, Tensor]]:
        """Terms against a discriminator that gets no gradient from them."""
        discriminator = self.trained_discriminator.bare.discriminator
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
        """The discriminator's own loss on the same reconstructions, without a gradient to the generator."""
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


def is_adversarial(config: AdversarialConfig) -> bool:
    return config.generator_weight > 0 or config.feature_matching_weight > 0


def weighted_sum(terms: dict[str, tuple[float, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    """{name: (weight, term)} -> the sum, and a report: each term as it is (`_loss`) and as it counts (`_weighted`)."""
    total = sum(weight * term for weight, term in terms.values())
    report = {f"{name}_loss": term.detach() for name, (_, term) in terms.items()}
    report |= {f"{name}_weighted": (weight * term).detach() for name, (weight, term) in terms.items()}
    return total, report


def clip_psnr(fake: Tensor, real: Tensor) -> Tensor:
    """(B, 3, T, H, W) in [-0.5, 0.5] -> dB of each clip (B,), after rounding to bytes as a viewer would see it."""
    difference = pixels.to_uint8(fake).float() - pixels.to_uint8(real).float()
    return 10 * torch.log10(255**2 / difference.square().flatten(1).mean(1).clamp_min(1e-8))


def comparisons(fake: Tensor, real: Tensor) -> Tensor:
    """original | reconstruction | difference, uint8 (B, 3, T, H, 3 W)."""
    pairs = zip(pixels.to_uint8(real).cpu(), pixels.to_uint8(fake).cpu(), strict=True)
    return torch.stack([compare(original, reconstruction) for original, reconstruction in pairs])


class TokenizerTask(Task):
    """A stage whose model turns float clips into reconstructions and saves itself.

    What a constructor reads from files it reads through `read_*`, which the plan of a run replaces.
    """

    read_clips = staticmethod(clip_datasets)
    read_images = staticmethod(image_dataset)
    read_stills = staticmethod(still_dataset)

    def reconstruct(self, video: Tensor) -> Tensor:
        return self.model(video)

    @torch.no_grad()
    def sample(self, batch: dict) -> Tensor:
        """original | reconstruction | difference of each clip."""
        video = pixels.to_float(batch["video"])
        return comparisons(self.reconstruct(video), video)

    def export(self, folder: Path, training: Mapping[str, Any]) -> None:
        self.model.save_pretrained(folder, training=training)


class WithImages(Dataset):
    """Clips, each with a still image of another source under "image"; the images are cycled through."""

    def __init__(self, clips: ClipDataset, images: ClipDataset):
        self.clips, self.images = clips, images

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: tuple[int, int]) -> dict:
        epoch, index = item
        # The clip's running number, so that successive epochs walk on through a longer list of images.
        number = epoch * len(self.clips) + index
        image, clip = self.images[number // len(self.images), number % len(self.images)], self.clips[item]
        problem = "; ".join(filter(None, (clip["problem"], image["problem"])))
        return {**clip, "image": image["video"], "problem": problem}
