"""The generator: a decoder-only transformer that samples the ids of a clip one by one.

Letters: B batch, L ids per clip, P and R lengths of prompt and target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sweettok.generator.card import CARD
from sweettok.generator.config import GeneratorConfig, SamplingConfig
from sweettok.generator.export import write_transformers
from sweettok.generator.sampling import check_finite, choose, drawable, guide, random_streams, scale_at
from sweettok.generator.sequence import SequenceLayout
from sweettok.generator.transformer import Cache, CausalTransformer, StepCache
from sweettok.hub import Pretrained

GRAPH_LENGTH = 512  # positions that the first graph of `compiled_step` reads; each further one reads twice as many


class Generator(Pretrained):
    """Generates the ids of clips: unconditionally, or from a class or given frames.

    Args:
        config: with `layout` and `num_classes` set.
        class_names: of the classes, if they have names.
    """

    config_class = GeneratorConfig
    card_info = CARD

    def __init__(self, config: GeneratorConfig, class_names: Sequence[str] | None = None):
        super().__init__()
        if config.layout is None or (config.num_classes is None and config.given_frames is None):
            raise ValueError("generator.layout and generator.num_classes must be set: take them from token shards")
        self.config = config = replace(config, num_classes=config.num_classes or 0)
        if class_names is not None and len(class_names) != config.num_classes:
            raise ValueError(f"{len(class_names)} class names for {config.num_classes} classes")
        self.class_names = tuple(class_names) if class_names is not None else None
        self.sequence: SequenceLayout = config.sequence
        self.transformer = CausalTransformer(config, self.sequence.vocab_size, self.sequence.block_size)

    def forward(self, prompt: Tensor, target: Tensor) -> Tensor:
        """Prompt (B, P) and target (B, R) of `sequence` -> logits (B, R, vocabulary) for the target's positions."""
        hidden = self.transformer(torch.cat((prompt, target[:, :-1]), dim=1))
        return self.transformer.logits(hidden[:, prompt.shape[1] - 1 :])

    def assets(self) -> dict[str, Any]:
        return {"class_names": self.class_names}

    @classmethod
    def build(cls, config: GeneratorConfig, assets: dict[str, Any], tensors: dict[str, Tensor]) -> Generator:
        return cls(config, assets["class_names"])

    def to_transformers(self, folder: str | Path) -> None:
        """Write a folder that transformers' `AutoModelForCausalLM` loads, with equal logits.

        GPT-2 with learned positions, GPT-NeoX with rotary ones; `qk_norm` needs `trust_remote_code=True`. The folder's
        sequence.json says which ids may stand where; `sweettok.generator.serving.LegalIds` reads it.
        """
        write_transformers(self, folder)

    def classes(self, labels: Sequence[int | str] | Tensor) -> Tensor:
        """Class numbers (B,) from numbers or names; ValueError for an unknown name."""
        if isinstance(labels, Tensor):
            return labels
        if isinstance(labels, str | int):
            raise ValueError(f"labels must be a list, one for each sample; got {labels!r}: give [{labels!r}]")
        known = self.class_names or ()
        wrong = [label for label in labels if isinstance(label, str) and label not in known]
        if wrong:
            names = ", ".join(known) or f"numbers 0..{self.sequence.num_classes - 1}, without names"
            raise ValueError(f"no class {wrong[0]!r}; this generator's classes are {names}")
        return torch.tensor([known.index(label) if isinstance(label, str) else label for label in labels])

    @torch.no_grad()
    def sample(
        self,
        labels: Sequence[int | str] | Tensor | None = None,
        *,
        given: Tensor | None = None,
        num_samples: int | None = None,
        indices: Sequence[int] | None = None,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
        compiled: bool = False,
        **settings: Any,
    ) -> Tensor:
        """Sample clips: global ids (B, L) int64, for a tokenizer's `decode`.

        A sample depends on (seed, its index), its condition and the settings, not on the rest of the batch, except for
        rounding in matrix products of other sizes, which very rarely changes an id.

        Args:
            labels: class numbers or names, for generators with classes.
            given: (B, L) ids of the given frames, for generators with frame prediction.
            num_samples: number of samples, for unconditional generators.
            indices: of the samples; 0, 1, 2, ... by default.
            progress: called with 1 after every word.
            compiled: take steps from graphs of torch.compile, which GPUs replay as wholes. Making the graphs takes
                minutes, so it is for many batches of one size. Results differ by rounding.
            settings: fields of SamplingConfig: cfg_scale, cfg_schedule, temperature, top_k, top_p.

        Raises ValueError for settings out of range, a wrong condition, and guidance of a generator trained without
        class dropout; FloatingPointError for logits that are not finite.
        """
        how = SamplingConfig(**settings)
        prompt = self._prompt(labels, given, num_samples)
        indices = range(len(prompt)) if indices is None else indices
        if len(indices) != len(prompt):
            raise ValueError(f"{len(indices)} indices for {len(prompt)} samples")
        chances = random_streams(seed, indices, self.sequence.layout.length).to(prompt.device)
        if how.guided:
            prompt = torch.cat((prompt, self._unconditional(len(prompt))))
        return self._write(prompt, chances, how, indices, progress, compiled)

    def _prompt(
        self, labels: Sequence[int | str] | Tensor | None, given: Tensor | None, num_samples: int | None
    ) -> Tensor:
        wanted = "given" if self.sequence.given_clip else "labels" if self.config.num_classes else "num_samples"
        found = {"labels": labels, "given": given, "num_samples": num_samples}
        names = [name for name, value in found.items() if value is not None]
        if names != [wanted]:
            each = wanted if wanted == "num_samples" else f"{wanted}, one for each sample"
            raise ValueError(f"this generator's samples need {each}, and nothing else; got {names or 'nothing'}")
        condition = given if labels is None else self.classes(labels)
        count = num_samples or 0 if condition is None else len(condition)
        if count < 1:
            raise ValueError(f"the number of samples must be at least 1; got {count}")
        device = self.transformer.tokens.weight.device
        return self.sequence.prompt(None if condition is None else condition.to(device), count, device)

    def _unconditional(self, batch: int) -> Tensor:
        if not self.sequence.null_class:
            raise ValueError(
                "guidance needs a null class, and this generator has none: use cfg_scale=1, or train with classes and "
                "generator.class_dropout above 0"
            )
        return self.sequence.prompt(torch.full((batch,), -1, device=self.transformer.tokens.weight.device))

    def _write(
        self,
        prompt: Tensor,
        chances: Tensor,
        how: SamplingConfig,
        indices: Sequence[int],
        progress: Callable[[int], None] | None,
        compiled: bool,
    ) -> Tensor:
        """Sample the words, with one forward each; separators are part of the input of the next word."""
        sequence, transformer, batch = self.sequence, self.transformer, len(chances)
        step = compiled_step if compiled else plain_step
        cache = Cache(self.config.num_layers, sequence.block_size)
        words: list[Tensor] = []
        inputs = [prompt]  # ids that are not in the cache yet
        for separators, segment in zip(sequence.separators, sequence.layout.segments, strict=True):
            inputs += [prompt.new_full((len(prompt), 1), separator) for separator in separators]
            first = sequence.word_start + segment.vocab_start
            finite = []
            for _ in range(segment.length):
                hidden = step(transformer, torch.cat(inputs, dim=1), cache)
                logits = transformer.logits(hidden, slice(first, first + segment.vocab_size)).float()
                if how.guided:
                    scale = scale_at(how.cfg_scale, how.cfg_schedule, len(words), sequence.layout.length)
                    conditional, unconditional = logits.chunk(2)
                    logits = guide(conditional, unconditional, scale)
                logits, good = drawable(logits)
                finite.append(good)
                words.append(segment.vocab_start + choose(logits, chances[:, len(words)], how))
                inputs = [(sequence.word_start + words[-1])[:, None].repeat(len(prompt) // batch, 1)]
                if progress is not None:
                    progress(1)
            check_finite(torch.stack(finite, dim=1), segment, indices)
        return torch.stack(words, dim=1)


def plain_step(transformer: CausalTransformer, ids: Tensor, cache: Cache) -> Tensor:
    """Hidden states (B, C) of the last of the ids (B, N), which are added to the cache."""
    return transformer(ids, cache)[:, -1]


def compiled_step(transformer: CausalTransformer, ids: Tensor, cache: Cache) -> Tensor:
    """`plain_step` of a single id by one of a few graphs, each for a number of positions that attention reads."""
    layers = [pair for pair in cache.layers if pair is not None]
    if ids.shape[1] > 1 or not layers:  # the start of a segment
        hidden = plain_step(transformer, ids, cache)
        for pair in cache.layers:
            for kept in pair or ():  # graphs change them in place
                torch._dynamo.mark_static_address(kept, guard=False)
        return hidden
    torch.compiler.cudagraph_mark_step_begin()
    past = torch.full((1,), cache.past, device=ids.device)
    length = min(max(GRAPH_LENGTH, 1 << cache.past.bit_length()), cache.length)
    # Beyond torch's limit of graphs, for batches of many sizes, steps are not compiled.
    graph = torch.compile(graph_step, dynamic=False, mode="reduce-overhead")
    cache.past += 1
    return graph(transformer, ids, past, layers, length).clone()  # the next step overwrites what a CUDA graph returns


def graph_step(
    transformer: CausalTransformer, ids: Tensor, past: Tensor, layers: list[tuple[Tensor, Tensor]], length: int
) -> Tensor:
    return transformer(ids, StepCache(layers, past, length))[:, -1]
