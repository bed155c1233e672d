"""Train a proxy tokenizer from scratch: clips and single frames, a code table of moving averages, pixel losses."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sweettok import pixels
from sweettok.config import ProxyRun
from sweettok.losses import perceptual_frame_indices, pick_frames
from sweettok.models.attention import set_gradient_checkpointing
from sweettok.models.proxy import ProxyOutput, ProxyTokenizer
from sweettok.train.task import StepContext
from sweettok.train.video import (
    PixelLosses,
    TokenizerTask,
    WithImages,
    clip_datasets,
    clip_psnr,
    image_dataset,
    player,
)


class ClipsAndImages(nn.Module):
    """One pass over both, so that every parameter takes part in every step."""

    def __init__(self, proxy: ProxyTokenizer):
        super().__init__()
        self.proxy = proxy

    def forward(self, video: Tensor, image: Tensor) -> tuple[ProxyOutput, ProxyOutput]:
        return self.proxy(video), self.proxy(image)


class ProxyTask(TokenizerTask):
    """The share `image_weight` of the loss is that of one image for each clip."""

    name = "proxy"

    def __init__(self, run: ProxyRun):
        self.run = run
        self.model = ProxyTokenizer(run.proxy)
        set_gradient_checkpointing(self.model, run.train.gradient_checkpointing)
        self.pixels = PixelLosses(run.loss, run.discriminator, run.discriminator_optimizer, run.train)
        self.perceptual = self.pixels.perceptual
        self.players = {"generator": player("generator", ClipsAndImages(self.model), run.optimizer, run.train)}
        if self.pixels.opponent is not None:
            self.players["discriminator"] = self.pixels.opponent
        self.train_dataset, self.validation_dataset = clip_datasets(run.data, run.proxy, run.train.seed)
        if run.images:
            images = image_dataset(run.images, run.data, run.proxy, run.train.seed)
            self.train_dataset = WithImages(self.train_dataset, images)
        self.chosen: list[tuple[ProxyOutput, ProxyOutput]] = []

    def losses(self, batch: dict, context: StepContext) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        video = pixels.to_float(batch["video"])
        image = pixels.to_float(batch["image"]) if "image" in batch else single_frames(video, context)
        outputs = self.players["generator"].module(video, image)
        self.chosen.append(outputs)

        total, report = 0.0, {}
        share = self.run.image_weight
        for name, weight, output, real in (
            ("clip", 1 - share, outputs[0], video),
            ("image", share, outputs[1], image),
        ):
            if name == "clip":
                loss, terms = self.pixels.generator(output.video, real, context)
            else:
                loss, terms = self.pixels.still(output.video, real)
            commitment = self.run.loss.commitment_weight * output.commitment
            total = total + weight * (loss + commitment)
            prefix = "" if name == "clip" else "image_"
            report |= {f"{prefix}{key}": value for key, value in terms.items()}
            report[f"{prefix}commitment_loss"] = output.commitment.detach()
            report[f"{prefix}commitment_weighted"] = commitment.detach()
        yield "generator", total, report
        if self.pixels.started(context):
            yield "discriminator", *self.pixels.discriminator(outputs[0].video, video)

    def after_step(self, context: StepContext) -> dict[str, Tensor | float]:
        features = [torch.cat([pair[i].features.flatten(0, -2) for pair in self.chosen]) for i in (0, 1)]
        codes = torch.cat([pair[i].codes.flatten() for i in (0, 1) for pair in self.chosen])
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
