"""Stage 1: encoder, codebooks and decoder learn to predict the proxy's codes of the same clip."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from sweettok import convert, pixels
from sweettok.config import Stage1Run
from sweettok.losses import proxy_cross_entropy, quantizer_loss, reconstruction_loss
from sweettok.models.attention import set_gradient_checkpointing
from sweettok.models.proxy import ProxyTokenizer
from sweettok.models.tokenizer import SweetTok, check_published
from sweettok.priors import load_prior
from sweettok.train.task import StepContext
from sweettok.train.video import TokenizerTask, clip_datasets, clip_psnr, player, weighted_sum

logger = logging.getLogger(__name__)

WARM_START_CLIPS = 16


class CodePredictor(nn.Module):
    """Clips -> logits over the proxy's codes, both sides of the quantizer loss summed over all lookups, and, if
    guided, the proxy's code vectors (B, M, t * c) as read from each temporal query at its place."""

    def __init__(self, tokenizer: SweetTok, guided: bool = False):
        super().__init__()
        self.tokenizer = tokenizer
        config = tokenizer.config
        self.guide = nn.Linear(config.latent_dim, config.grid[0] * config.proxy.code_dim) if guided else None

    def forward(self, video: Tensor) -> tuple[Tensor, ...]:
        prediction = self.tokenizer.predict(video)
        halves = (*prediction.spatial.halves, *prediction.temporal.halves)
        sides = [quantizer_loss(z, code) for z, code in halves]
        outputs = prediction.logits, sum(s.encoder_side for s in sides), sum(s.codebook_side for s in sides)
        return outputs if self.guide is None else (*outputs, self.guide(prediction.temporal.output))


class Stage1Task(TokenizerTask):
    """The teacher is frozen; its pixel decoder rides along, so that the result can be looked at."""

    name = "stage1"

    def __init__(self, run: Stage1Run):
        self.run = run
        self.teacher = load_proxy(run.proxy).requires_grad_(False)
        if self.teacher.config != run.tokenizer.proxy:
            raise ValueError(
                f"the proxy at {run.proxy} has other sizes than tokenizer.proxy: {self.teacher.config} "
                f"against {run.tokenizer.proxy}"
            )
        config = replace(run.tokenizer, pixel_path="argmax")
        self.model = SweetTok(config, load_prior(run.prior))
        self.model.use_proxy(self.teacher)
        self.model.pixel_decoder.requires_grad_(False)
        self.train_dataset, self.validation_dataset = clip_datasets(run.data, config.proxy, run.train.seed)
        if run.init and run.warm_start:
            raise ValueError("warm_start fits fresh weights, and init replaces them: leave one of them out")
        if run.init:
            start_from(self.model, run.init)
        if run.warm_start:
            count = min(WARM_START_CLIPS, len(self.train_dataset))
            clips = torch.stack([self.train_dataset[index]["video"] for index in range(count)])
            self.model.warm_start(pixels.to_float(clips))
        set_gradient_checkpointing(self.model, run.train.gradient_checkpointing)
        predictor = CodePredictor(self.model, guided=run.loss.guide_weight > 0)
        names = {"released_name": released_parameter}
        self.players = {"generator": player("generator", predictor, run.optimizer, run.train, **names)}

    def losses(self, batch: dict, context: StepContext) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        video = pixels.to_float(batch["video"])
        codes = self.teacher.encode(video)
        context.seed_default_generators()  # the graph's dropout draws the same codebook on every process
        logits, encoder_side, codebook_side, *readout = self.players["generator"].module(video)
        weights = self.run.loss
        terms = {
            "code": (weights.code_weight, proxy_cross_entropy(logits, codes, weights.label_smoothing)),
            "quantizer_encoder_side": (weights.quantizer_weight * weights.encoder_side_weight, encoder_side),
            "quantizer_codebook_side": (weights.quantizer_weight * weights.codebook_side_weight, codebook_side),
        }
        if readout:
            vectors = rearrange(self.teacher.codebook(codes), "b t h w c -> b (h w) (t c)")
            terms["guide"] = (weights.guide_weight, reconstruction_loss(readout[0], vectors))
        total, report = weighted_sum(terms)
        report["code_accuracy"] = (logits.detach().argmax(1) == codes).float().mean()
        yield "generator", total, report

    @torch.no_grad()
    def validate(self, batch: dict) -> dict[str, Tensor]:
        video = pixels.to_float(batch["video"])
        codes = self.teacher.encode(video)
        logits = self.model.predict(video).logits
        entropy = nn.functional.cross_entropy(logits.float(), codes, reduction="none").flatten(1).mean(1)
        accuracy = (logits.argmax(1) == codes).float().flatten(1).mean(1)
        psnr = clip_psnr(self.model.to_pixels(logits), video)
        return {"code_loss": entropy, "code_accuracy": accuracy, "psnr": psnr}


def released_parameter(name: str) -> str:
    """Published name of a parameter of a module that holds the tokenizer; its own name if it has none."""
    if not name.startswith("tokenizer."):
        return name
    return convert.TOKENIZER.released_name(name.removeprefix("tokenizer."))


def load_proxy(path: str) -> ProxyTokenizer:
    """A proxy of ours (a folder) or the published file."""
    if not Path(path).exists():
        raise FileNotFoundError(
            f"no proxy tokenizer at {path}: set proxy to a folder that run_train_proxy.sh wrote, or get the published "
            "file (checkpoints/README.md)"
        )
    return ProxyTokenizer.from_pretrained(path) if Path(path).is_dir() else ProxyTokenizer.from_release(path)


def start_from(model: SweetTok, path: str) -> None:
    """Load a tokenizer of ours (a folder), or whatever parts a published file holds, into `model`."""
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("pixel_decoder.")}
    if Path(path).is_dir():
        found = {name: value for name, value in SweetTok.from_pretrained(path).state_dict().items() if name in state}
    else:
        check_published(model.config)
        released = convert.read_weights(path)
        released = {name: value for name, value in released.items() if not name.startswith("pixel_")}
        found = convert.import_weights(state, released, convert.TOKENIZER, partial=True)
    model.load_state_dict({**model.state_dict(), **found})
    logger.info("started from %s: %d of %d entries", path, len(found), len(state))
