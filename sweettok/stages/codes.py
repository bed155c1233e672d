"""Shared by stage 1 and spatial pretraining: training on the proxy's codes of clips or images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from sweettok import pixels
from sweettok.config import build, flatten, to_dict
from sweettok.hub import find_shipped
from sweettok.losses.config import QuantizerLossConfig
from sweettok.losses.terms import proxy_cross_entropy, quantizer_loss, reconstruction_loss, usage_loss
from sweettok.priors.graph import Prior, WordGraph
from sweettok.proxy.config import ProxyConfig
from sweettok.stages.inputs import Inputs
from sweettok.stages.video import TokenizerTask, clip_psnr, trained_module, weighted_sum
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.quantizer import Quantized
from sweettok.tokenizer.release import TOKENIZER
from sweettok.train.config import RunConfig
from sweettok.train.task import StepContext
from sweettok.train.usage import UsageWatch, UsageWindow

WARM_START_CLIPS = 16


@dataclass(frozen=True)
class CodeLossConfig(QuantizerLossConfig):
    """Weights of the loss terms; the defaults are the release's."""

    code_weight: float = 1.0  # cross-entropy to the proxy's codes
    label_smoothing: float = 0.0  # of that cross-entropy, in [0, 1)


class CodePredictor(nn.Module):
    """Predicts the proxy's codes of clips or images; in training mode, `usage` counts the chosen words.

    Args:
        weights: of the loss terms.
        auxiliary: also predict the targets of `CodeTask.auxiliary_targets` from the queries, by linear layers.
    """

    def __init__(self, tokenizer: SweetTok, weights: QuantizerLossConfig, auxiliary: bool = False):
        super().__init__()
        self.tokenizer, self.weights = tokenizer, weights
        self.usage = UsageWindow(tokenizer.layout)
        config = tokenizer.config
        dim, c = config.latent_dim, config.proxy.code_dim
        outputs = {"spatial": c, "temporal": (config.grid[0] - 1) * c}
        layers = {name: nn.Linear(dim, width) for name, width in outputs.items()} if auxiliary else {}
        self.auxiliary = nn.ModuleDict(layers)

    def forward(self, video: Tensor) -> tuple[Any, ...]:
        """video (B, 3, T, H, W) -> logits (B, K, t, h, w), `quantizer_terms`, and with `auxiliary` two predictions."""
        prediction = self.tokenizer.predict(video)
        if self.training:
            self.usage(*(ids for lookup in prediction.lookups for ids in lookup.ids))
        outputs = prediction.logits, quantizer_terms(prediction.lookups, self.weights)
        if not self.auxiliary:
            return outputs
        branches = zip(self.auxiliary.values(), prediction.lookups, strict=True)
        return *outputs, *(layer(lookup.output) for layer, lookup in branches)


def quantizer_terms(lookups: Iterable[Quantized], weights: QuantizerLossConfig) -> dict[str, Tensor]:
    """Loss terms of the lookups of all branches by name, each a sum over the word lists."""
    lookups = list(lookups)
    sides = [quantizer_loss(z, code) for lookup in lookups for z, code in lookup.halves]
    terms = {
        "quantizer_encoder_side": sum(side.encoder_side for side in sides),
        "quantizer_codebook_side": sum(side.codebook_side for side in sides),
    }
    if weights.usage_weight:
        pairs = [(z, table) for lookup in lookups for (z, _), table in zip(lookup.halves, lookup.tables, strict=True)]
        terms["usage"] = sum(usage_loss(z, table) for z, table in pairs)
    return terms


class CodeTask(TokenizerTask):
    """Trains a tokenizer on the codes of a frozen proxy, whose pixel decoder becomes part of the exported tokenizer.

    The usage of the word lists is logged for the steps between two lines of the log.
    """

    def __init__(self, run: Any, words: Prior | WordGraph, inputs: Inputs):
        self.run = run
        self.teacher = inputs.proxy(run.proxy, run.tokenizer.proxy).requires_grad_(False)
        if self.teacher.config != run.tokenizer.proxy:
            raise ValueError(
                f"the proxy at {run.proxy} is {self.teacher.config}, tokenizer.proxy {run.tokenizer.proxy}"
            )
        self.model = SweetTok(replace(run.tokenizer, pixel_path="argmax"), words)
        self.model.use_proxy(self.teacher)
        self.model.pixel_decoder.requires_grad_(False)
        self.watch = UsageWatch(self.model.layout, run.train.log_every * run.train.global_batch_size)
        self.counted_steps, self.progress = 0, 0.0

    @classmethod
    def complete(cls, settings: DictConfig, earlier: Sequence[RunConfig] = ()) -> DictConfig:
        """Set `tokenizer.proxy` from the proxy itself; ValueError if the settings differ from it."""
        path = OmegaConf.select(settings, "proxy", default=None)
        if path is not None and not isinstance(path, str):
            raise ValueError(
                f"proxy must be the path of a trained proxy, got {type(path).__name__}: its sizes are read there"
            )
        actual = proxy_config(path, earlier) if path else None
        if actual is None:
            return settings
        given = OmegaConf.select(settings, "tokenizer.proxy", default=None) or {}
        wanted, found = (flatten(to_dict(config)) for config in (build(ProxyConfig, to_dict(actual), given), actual))
        for name, value in wanted.items():
            if value != found[name]:
                raise ValueError(
                    f"tokenizer.proxy.{name} is {value}, but the proxy at {path} has {found[name]}: leave the setting "
                    "out to take the proxy's"
                )
        return OmegaConf.merge(settings, {"tokenizer": {"proxy": to_dict(actual)}})

    def warm_start(self) -> None:
        """Fit the initial weights to clips that are spread over the list, which may be sorted by class."""
        total = len(self.train_dataset)
        count = min(WARM_START_CLIPS, total)
        clips = [self.train_dataset[number * total // count]["video"] for number in range(count)]
        self.model.warm_start(pixels.to_float(torch.stack(clips)))

    def make_optimizer(self, auxiliary: bool = False) -> None:
        """Create the trained module, once the model has its initial weights."""
        predictor, run = CodePredictor(self.model, self.run.loss, auxiliary), self.run
        trained = trained_module("generator", predictor, run.optimizer, run.train, released_name=released_parameter)
        self.trained = {"generator": trained}

    def losses(self, batch: dict, context: StepContext) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        video = pixels.to_float(batch["video"])
        codes = self.teacher.encode(batch["video"])  # bytes: the range check of floats would synchronize
        context.seed_default_generators()  # dropout in the word graph must be equal on all processes
        logits, quantizer, *vectors = self.trained["generator"].module(video)
        weights = self.run.loss
        terms = {
            "code": (weights.code_weight, proxy_cross_entropy(logits, codes, weights.label_smoothing)),
            **weights.weighted(quantizer),
        }
        if vectors:
            pairs = zip(vectors, self.auxiliary_targets(codes), strict=True)
            loss = sum(reconstruction_loss(vector, target) for vector, target in pairs)
            terms["auxiliary"] = (weights.auxiliary_weight, loss)
        total, report = weighted_sum(terms)
        report["code_accuracy"] = (logits.detach().movedim(1, -1).argmax(-1) == codes).float().mean()
        yield "generator", total, report

    def auxiliary_targets(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Targets of the auxiliary loss from codes (B, t, h, w).

        Code vectors of the first slice, pooled to the spatial queries, (B, S, c); and at each position the differences
        of the later slices' code vectors to it, (B, h * w, (t - 1) * c).
        """
        first, *later = self.teacher.codebook(codes).unbind(1)
        grid = self.model.config.spatial_query_grid
        spatial = nn.functional.adaptive_avg_pool2d(first.movedim(-1, 1), grid).flatten(2).mT
        return spatial, torch.cat([vectors - first for vectors in later], dim=-1).flatten(1, 2)

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
        every, self.progress = self.run.train.log_every, (context.step + 1) / self.run.train.max_steps
        self.counted_steps += 1
        if not every or (context.step + 1) % every:
            return {}
        report = self.trained["generator"].bare.usage.read()
        whole, self.counted_steps = self.counted_steps == every, 0
        return report if whole else {}

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        self.watch.see(means, self.progress)
        return {}

    def extra_state(self) -> dict[str, Any]:
        return {"best_perplexity": self.watch.best}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.watch.best = dict(state.get("best_perplexity", {}))


def proxy_config(path: str, earlier: Sequence[RunConfig] = ()) -> ProxyConfig | None:
    """Configuration of the proxy at `path`, or of the one that an `earlier` run will write there; None if unknown."""
    for run in earlier:
        config = getattr(run, "proxy", None)
        if isinstance(config, ProxyConfig) and Path(path) == Path(run.train.output_dir) / "final":
            return config
    if Path(path).is_file():
        return ProxyConfig()  # the published file
    try:
        folder = Path(find_shipped(path, "ProxyTokenizer"))
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return build(ProxyConfig, about["config"])
    except (OSError, ValueError, KeyError):  # loading the proxy will report the error
        return None


def released_parameter(name: str) -> str | None:
    """Published name of a parameter of a module that holds the tokenizer; None if it has none."""
    return TOKENIZER.released_name(name.removeprefix("tokenizer.")) if name.startswith("tokenizer.") else None
