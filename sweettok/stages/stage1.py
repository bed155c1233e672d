"""Stage 1: encoder, codebooks and decoder learn to predict the proxy's codes of the same clip."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional  # noqa: UP035  (OmegaConf reads these annotations)

import torch
from einops import rearrange
from omegaconf import MISSING
from torch import Tensor, nn

from sweettok import convert, pixels
from sweettok.data.config import DataConfig
from sweettok.layers.attention import set_gradient_checkpointing
from sweettok.losses.terms import proxy_cross_entropy, quantizer_loss, reconstruction_loss
from sweettok.priors import load_prior
from sweettok.priors.graph import Prior, WordGraph
from sweettok.proxy.model import ProxyTokenizer
from sweettok.stages.video import TokenizerTask, clip_psnr, trained_module, weighted_sum
from sweettok.tokenizer.config import TokenizerConfig
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.release import check_published
from sweettok.train.config import OptimizerConfig, TrainConfig
from sweettok.train.task import StepContext
from sweettok.train.usage import UsageWatch, UsageWindow


@dataclass(frozen=True)
class SpatialLossConfig:
    code_weight: float = 1.0
    label_smoothing: float = 0.0
    quantizer_weight: float = 1.0
    # The release weighs the codebook's side by 0.25 and the encoder's side fully.
    encoder_side_weight: float = 1.0
    codebook_side_weight: float = 0.25


@dataclass(frozen=True)
class Stage1LossConfig(SpatialLossConfig):
    # Linear readout of the proxy's code vectors from each temporal query, at its own place: a short path that lets
    # encoder and word lists learn before the decoder does. Not in the release (0).
    guide_weight: float = 0.0


@dataclass(frozen=True)
class Stage1Run:
    """Train encoder, codebooks and decoder to predict the proxy's codes."""

    stage: str = "stage1"
    proxy: str = MISSING  # trained proxy: a folder of ours, or the published file
    prior: str = MISSING  # folder with the word graphs
    init: Optional[str] = None  # noqa: UP045  (weights to start from: a folder of ours, or a published file)
    # Fit fresh weights to the proxy and to the first clips: the head starts from the geometry of the proxy's codes,
    # latents and word codes from one distribution. Learning starts at once instead of after thousands of steps.
    # With `init`, what that does not hold.
    warm_start: bool = False
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: Stage1LossConfig = field(default_factory=Stage1LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


logger = logging.getLogger(__name__)

WARM_START_CLIPS = 16


def load_proxy(path: str) -> ProxyTokenizer:
    """A proxy of ours (a folder) or the published file."""
    if not Path(path).exists():
        raise FileNotFoundError(
            f"no proxy tokenizer at {path}: set proxy to a folder that run_train_proxy.sh wrote, or get the published "
            "file (checkpoints/README.md)"
        )
    return ProxyTokenizer.from_pretrained(path) if Path(path).is_dir() else ProxyTokenizer.from_release(path)


class CodePredictor(nn.Module):
    """Clips or images -> logits over the proxy's codes, both sides of the quantizer loss summed over all lookups, and,
    if guided, the proxy's code vectors (B, M, t * c) as read from each temporal query at its place.

    In training mode the words that were chosen are counted in `usage`.
    """

    def __init__(self, tokenizer: SweetTok, guided: bool = False):
        super().__init__()
        self.tokenizer = tokenizer
        self.usage = UsageWindow(tokenizer.layout)
        config = tokenizer.config
        self.guide = nn.Linear(config.latent_dim, config.grid[0] * config.proxy.code_dim) if guided else None

    def forward(self, video: Tensor) -> tuple[Tensor, ...]:
        prediction = self.tokenizer.predict(video)
        if self.training:
            self.usage(*(ids for lookup in prediction.lookups for ids in lookup.ids))
        sides = [quantizer_loss(z, code) for lookup in prediction.lookups for z, code in lookup.halves]
        outputs = prediction.logits, sum(s.encoder_side for s in sides), sum(s.codebook_side for s in sides)
        return outputs if self.guide is None else (*outputs, self.guide(prediction.temporal.output))


class CodeTask(TokenizerTask):
    """Learns the proxy's codes. The teacher is frozen; its pixel decoder rides along, so that the result can be looked
    at. Usage of the word lists is logged of whole windows: the steps between two lines of the log.
    """

    read_proxy = staticmethod(load_proxy)
    read_prior = staticmethod(load_prior)

    def __init__(self, run: Any, words: Prior | WordGraph):
        self.run = run
        self.teacher = self.read_proxy(run.proxy).requires_grad_(False)
        if self.teacher.config != run.tokenizer.proxy:
            raise ValueError(
                f"the proxy at {run.proxy} has other sizes than tokenizer.proxy: {self.teacher.config} "
                f"against {run.tokenizer.proxy}"
            )
        config = replace(run.tokenizer, pixel_path="argmax")
        self.model = SweetTok(config, words)
        self.model.use_proxy(self.teacher)
        self.model.pixel_decoder.requires_grad_(False)
        set_gradient_checkpointing(self.model, run.train.gradient_checkpointing)
        self.watch = UsageWatch(self.model.layout, run.train.log_every * run.train.global_batch_size)
        self.counted_steps = 0

    def warm_start(self) -> None:
        """Fit the fresh model to the first clips."""
        count = min(WARM_START_CLIPS, len(self.train_dataset))
        clips = torch.stack([self.train_dataset[index]["video"] for index in range(count)])
        self.model.warm_start(pixels.to_float(clips))

    def play(self, guided: bool = False) -> None:
        """Make the one trained module."""
        predictor, names = CodePredictor(self.model, guided), {"released_name": released_parameter}
        optimizer, train = self.run.optimizer, self.run.train
        self.trained = {"generator": trained_module("generator", predictor, optimizer, train, **names)}

    def losses(self, batch: dict, context: StepContext) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        video = pixels.to_float(batch["video"])
        codes = self.teacher.encode(batch["video"])  # bytes: the range of floats would be looked at, and waited for
        context.seed_default_generators()  # the graph's dropout draws the same codebook on every process
        logits, encoder_side, codebook_side, *readout = self.trained["generator"].module(video)
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

    def after_step(self, context: StepContext) -> dict[str, Tensor | float]:
        self.counted_steps += 1
        every = self.run.train.log_every
        if not every or (context.step + 1) % every:
            return {}
        report = self.trained["generator"].bare.usage.read()
        whole, self.counted_steps = self.counted_steps == every, 0
        return report if whole else {}

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        self.watch.see(means)
        return {}

    def extra_state(self) -> dict[str, Any]:
        return {"best_perplexity": self.watch.best}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.watch.best = dict(state.get("best_perplexity", {}))


class Stage1Task(CodeTask):
    name = "stage1"

    def __init__(self, run: Stage1Run):
        super().__init__(run, self.read_prior(run.prior))
        proxy = self.model.config.proxy
        self.train_dataset, self.validation_dataset = self.read_clips(run.data, proxy, run.train.seed)
        found = start_from(self.model, run.init) if run.init else {}
        trained = {name for name, param in self.model.named_parameters() if param.requires_grad}
        if run.warm_start and trained <= found.keys():
            raise ValueError("warm_start fits fresh weights, and init replaces all of them: leave one of them out")
        if run.warm_start:
            self.warm_start()
        self.model.load_state_dict({**self.model.state_dict(), **found})
        self.play(guided=run.loss.guide_weight > 0)


def released_parameter(name: str) -> str:
    """Published name of a parameter of a module that holds the tokenizer; its own name if it has none."""
    if not name.startswith("tokenizer."):
        return name
    return convert.TOKENIZER.released_name(name.removeprefix("tokenizer."))


def start_from(model: SweetTok, path: str) -> dict[str, Tensor]:
    """What a folder of ours, a tokenizer or the spatial branch of one, or a published file holds of `model`'s entries.

    Pixel decoders stay out. ValueError for other sizes or words.
    """
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("pixel_decoder.")}
    if Path(path).is_dir():
        other = SweetTok.from_pretrained(path)
        ours, theirs = model.assets()["words"], other.assets()["words"]
        changed = [branch for branch in theirs if theirs[branch] != ours[branch]]
        if changed:
            raise ValueError(f"{path} was trained with other {' and '.join(changed)} words: give the same prior")
        found = {name: value for name, value in other.state_dict().items() if name in state}
        wrong = sorted(name for name, value in found.items() if value.shape != state[name].shape)
        if wrong:
            raise ValueError(f"{path} is of other sizes than tokenizer: {len(wrong)} entries differ, as {wrong[0]}")
    elif not Path(path).exists():
        raise FileNotFoundError(
            f"no weights at {path} to start from: run_train_spatial.sh makes such weights (checkpoints/README.md names "
            "the published ones), or set init=null"
        )
    else:
        check_published(model.config)
        released = convert.read_weights(path)
        released = {name: value for name, value in released.items() if not name.startswith("pixel_")}
        found = convert.import_weights(state, released, convert.TOKENIZER, partial=True)
    logger.info("starting from %s: %d of %d entries", path, len(found), len(state))
    return found
