"""Generator training: predict the next word of tokenized clips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sweettok import pixels
from sweettok.data.config import TokenDataConfig
from sweettok.data.tokens import TokenDataset
from sweettok.generator.config import GeneratorConfig, SamplingConfig
from sweettok.generator.model import Generator
from sweettok.losses.terms import WordLosses, word_losses
from sweettok.stages.inputs import Inputs
from sweettok.stages.video import trained_module
from sweettok.tokenizer.layout import TokenLayout
from sweettok.tokenizer.model import SweetTok
from sweettok.train.config import OptimizerConfig, TrainConfig
from sweettok.train.task import StepContext, Task


@dataclass(frozen=True)
class GeneratorLossConfig:
    """Loss of the generator."""

    label_smoothing: float = 0.1  # over the whole vocabulary, in [0, 1)

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"loss.label_smoothing must be in [0, 1); got {self.label_smoothing}")


@dataclass(frozen=True)
class GeneratorRun:
    """Train a generator on token shards."""

    stage: str = "generator"
    tokenizer: str | None = None  # the tokenizer that wrote the shards, which decodes samples; null: no samples
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    data: TokenDataConfig = field(default_factory=TokenDataConfig)
    loss: GeneratorLossConfig = field(default_factory=GeneratorLossConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


class NextWord(nn.Module):
    """Losses of a generator at all positions of the target."""

    def __init__(self, generator: Generator, label_smoothing: float):
        super().__init__()
        self.generator, self.label_smoothing = generator, label_smoothing

    def forward(self, prompt: Tensor, target: Tensor) -> WordLosses:
        """prompt (B, P) and target (B, R) ids -> losses (B, R)."""
        return word_losses(self.generator(prompt, target), target, self.label_smoothing)


class GeneratorTask(Task):
    """Trains a generator on all positions of the target, including separators."""

    name = "generator"
    run_class = GeneratorRun

    def __init__(self, run: GeneratorRun, inputs: Inputs | None = None):
        self.run, inputs = run, inputs or Inputs()
        self.train_dataset = inputs.tokens(run.data.train, run.generator, run.tokenizer)
        config = complete(run.generator, self.train_dataset)
        if run.data.validation:
            self.validation_dataset = inputs.tokens(run.data.validation, run.generator, run.tokenizer)
            complete(config, self.validation_dataset)
        self.tokenizer = self._open_tokenizer(inputs)
        self.model = Generator(config, self.train_dataset.class_names if config.num_classes else None)
        module = NextWord(self.model, run.loss.label_smoothing)
        self.trained = {"generator": trained_module("generator", module, run.optimizer, run.train)}

    def _open_tokenizer(self, inputs: Inputs) -> SweetTok | None:
        sampling = self.run.train.sample_every > 0 and self.run.train.num_samples > 0
        if self.run.tokenizer is None and sampling:
            raise ValueError("samples need a tokenizer to decode them: set tokenizer, or train.sample_every=0")
        if self.run.tokenizer is None or not (sampling or inputs.readable):
            return None
        tokenizer = inputs.tokenizer(self.run.tokenizer).requires_grad_(False)
        if inputs.readable:
            self.train_dataset.check_tokenizer(tokenizer.ids_hash())
        return tokenizer

    def example_batch(self, size: int) -> dict[str, Tensor]:
        ids = torch.zeros(size, self.tokens_per_clip, dtype=torch.long)
        return {"ids": ids, "given": ids, "label": torch.zeros(size, dtype=torch.long)}

    @property
    def tokens_per_clip(self) -> int:
        return self.model.sequence.layout.length

    def prompt(self, batch: dict, dropped: Tensor | None = None) -> Tensor:
        """Prompts (B, P) of a batch, with the null class where `dropped` (B,) is set.

        The dataset has checked the values; checking them here would synchronize with the device.
        """
        sequence, ids = self.model.sequence, batch["ids"]
        if sequence.given_clip:
            return sequence.prompt(batch["given"], check_values=False)
        if not sequence.num_classes:
            return sequence.prompt(batch=len(ids), device=ids.device)
        labels = batch["label"]
        if dropped is not None:
            labels = labels.masked_fill(dropped.to(labels.device, non_blocking=True), -1)
        return sequence.prompt(labels, check_values=False)

    def losses(self, batch: dict, context: StepContext) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        sequence, dropped = self.model.sequence, None
        if sequence.null_class:
            draws = torch.rand(context.global_batch, generator=context.generator("class dropout"))
            dropped = context.own(draws) < self.model.config.class_dropout
        target = sequence.target(batch["ids"])
        losses = self.trained["generator"].module(self.prompt(batch, dropped), target)
        report = {name: value.mean() for name, value in self.metrics(losses).items()}
        yield "generator", losses.smoothed.mean(), report

    def metrics(self, losses: WordLosses) -> dict[str, Tensor]:
        """Cross-entropy in nats and accuracy (B,) of each clip's words, in all and for each segment."""
        sequence = self.model.sequence
        found = {"cross_entropy": losses.plain, "accuracy": losses.correct}
        report = {}
        for start, segment in zip(sequence.segment_starts, sequence.layout.segments, strict=True):
            words = slice(start, start + segment.length)
            report |= {f"{name}/{segment.name}": values[:, words].mean(1) for name, values in found.items()}
        for name in found:
            parts = [segment.length * report[f"{name}/{segment.name}"] for segment in sequence.layout.segments]
            report[name] = sum(parts) / sequence.layout.length
        return report

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexities; `perplexity_uniform` is that of uniform guesses within each segment's vocabulary."""
        layout = self.model.sequence.layout
        report = {
            name.replace("cross_entropy", "perplexity"): math.exp(value)
            for name, value in means.items()
            if name.startswith("cross_entropy")
        }
        return report | {"perplexity_uniform": 2 ** (layout.bits / layout.length)}

    @torch.no_grad()
    def validate(self, batch: dict) -> dict[str, Tensor]:
        target = self.model.sequence.target(batch["ids"])
        return self.metrics(word_losses(self.model(self.prompt(batch), target), target, 0.0))

    @torch.no_grad()
    def sample(self, batch: dict) -> Tensor | None:
        """Clips sampled for the conditions of the batch."""
        if self.tokenizer is None:
            return None
        sequence, condition = self.model.sequence, {"num_samples": len(batch["ids"])}
        if sequence.given_clip:
            condition = {"given": batch["given"]}
        elif sequence.num_classes:
            condition = {"labels": batch["label"]}
        ids = self.model.sample(**condition, seed=self.run.train.seed, **asdict(self.run.sampling))
        return pixels.to_uint8(self.tokenizer.decode(ids))

    def export(self, folder: Path, training: Mapping[str, Any]) -> None:
        self.model.save_pretrained(folder, training=training)


def complete(config: GeneratorConfig, tokens: TokenDataset) -> GeneratorConfig:
    """The configuration with the values of the token shards; ValueError if a setting differs from them."""
    given = config.given_frames
    facts = {"layout": TokenLayout(**tokens.layout.fields), "tokenizer_hash": tokens.tokenizer_hash}
    if given is not None:
        facts["given_frames"] = tokens.given_frames
    elif config.num_classes != 0:
        facts["num_classes"] = tokens.num_classes
    for name, fact in facts.items():
        value = getattr(config, name)
        if value is not None and value != fact:
            raise ValueError(f"generator.{name} is {value}, but the token shards at {tokens.folder} have {fact}")
    if given is None and config.num_classes is None and not tokens.num_classes:
        raise ValueError(f"{tokens.folder} has no labels: set generator.num_classes=0 for an unconditional generator")
    return replace(config, **facts)
