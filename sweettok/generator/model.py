"""The generator: a decoder-only transformer that writes a clip word by word, from a class, given frames or nothing.

Letters: B batch, N places, C width, H heads, D width of a head, L ids per clip, P and R lengths of prompt and target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sweettok.generator.card import CARD
from sweettok.generator.config import GeneratorConfig, SamplingConfig
from sweettok.generator.sampling import draw, filter_logits, guide, random_streams, scale_at
from sweettok.generator.sequence import SequenceLayout
from sweettok.hub import Pretrained
from sweettok.layers.attention import rotate

INIT_STD, INIT_DIM = 0.02, 1536  # the release's deviation and width
ROTARY_THETA = 10000.0


class Cache:
    """Keys and values of the places that were read, in memory for `length` places that is taken once."""

    def __init__(self, num_layers: int, length: int):
        self.length, self.past = length, 0
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """New keys and values (B, H, n, D) of a layer -> all of its so far, (B, H, past + n, D)."""
        kept = self.layers[layer]
        if kept is None:
            batch, heads, _, width = keys.shape
            shape = batch, heads, self.length, width
            kept = self.layers[layer] = keys.new_empty(shape), values.new_empty(shape)
        all_keys, all_values = kept
        stop = self.past + keys.shape[2]
        all_keys[:, :, self.past : stop] = keys
        all_values[:, :, self.past : stop] = values
        return all_keys[:, :, :stop], all_values[:, :, :stop]


class Linear(nn.Linear):
    """nn.Linear whose weights are multiplied block by block when sampling few rows on a CPU.

    Matrix libraries pack large weights anew for every product, which costs more than the product itself where 4 to 16
    rows meet them; blocks that fit a core's cache take up to a third less time (scripts/bench/generator.py).
    """

    BLOCK = 256

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        if x.device.type != "cpu" or not 2 < rows <= 16 or torch.is_grad_enabled() or self.bias is None:
            return super().forward(x)
        blocks = zip(self.weight.split(self.BLOCK), self.bias.split(self.BLOCK), strict=True)
        return torch.cat([F.linear(x, weight, bias) for weight, bias in blocks], dim=-1)


class CausalAttention(nn.Module):
    """Multi-head attention of each place to itself and all before it."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = Linear(config.dim, 3 * config.dim)
        self.out = Linear(config.dim, config.dim)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=1e-6) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(config.head_dim, eps=1e-6) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, angles: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        """x (B, N, C); angles (2, N, D / 2) of rotary positions. With a cache, x continues what the cache holds."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if angles is not None:
            q, k = rotate(q, angles).to(v.dtype), rotate(k, angles).to(v.dtype)
        mask = None
        if cache is not None:
            k, v = cache.append(layer, k, v)
            if cache.past and x.shape[1] > 1:
                mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=x.device).tril(cache.past)
        alone = k.shape[2] == q.shape[2]  # nothing precedes; a single new place sees all, and needs no mask
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=alone and q.shape[2] > 1)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm attention and feed-forward layer (exact GELU, biases everywhere)."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim)
        self.attention = CausalAttention(config)
        self.norm2 = nn.LayerNorm(config.dim)
        inner = 4 * config.dim
        self.mlp = nn.Sequential(Linear(config.dim, inner), nn.GELU(), Linear(inner, config.dim))

    def forward(self, x: Tensor, angles: Tensor | None = None, cache: Cache | None = None, layer: int = 0) -> Tensor:
        x = x + self.attention(self.norm1(x), angles, cache, layer)
        return x + self.mlp(self.norm2(x))


class CausalTransformer(nn.Module):
    """Ids -> what each place knows of the next; `logits` reads it as scores of ids.

    Source: the release's body (Net2NetTransformer's GPT), with learned positions and an untied head; rotary positions,
    normed queries and keys and a tied head are options that it does not have.
    """

    def __init__(self, config: GeneratorConfig, vocab_size: int, block_size: int):
        super().__init__()
        self.config, self.block_size = config, block_size
        self.tokens = nn.Embedding(vocab_size, config.dim)
        learned = config.positions == "learned"
        self.positions = nn.Parameter(torch.empty(block_size, config.dim)) if learned else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim)
        self.head = None if config.tied_head else nn.Linear(config.dim, vocab_size, bias=False)
        self.gradient_checkpointing = False
        self.init_weights()

    def init_weights(self) -> None:
        """Matrices and embeddings normal: deviation 0.02, more in models narrower than the release's. Rest 0 or 1."""
        std = INIT_STD * max(1.0, INIT_DIM / self.config.dim) ** 0.5
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.positions is not None:
            nn.init.zeros_(self.positions)

    def angles(self, start: int, count: int, device: torch.device) -> Tensor | None:
        """(2, count, D / 2) cosines and sines of rotary positions."""
        if self.positions is not None:
            return None
        width = self.config.head_dim
        frequencies = ROTARY_THETA ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
        turns = torch.arange(start, start + count, device=device)[:, None] * frequencies
        return torch.stack((turns.cos(), turns.sin()))

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """ids (B, N) -> (B, N, C). With a cache, the ids follow those that it holds, and are added to it."""
        start = cache.past if cache is not None else 0
        stop = start + ids.shape[1]
        if stop > self.block_size:
            raise ValueError(f"{stop} places are more than this generator's block of {self.block_size}")
        x = self.tokens(ids)
        if self.positions is not None:
            x = x + self.positions[start:stop]
        angles = self.angles(start, ids.shape[1], ids.device)
        for layer, block in enumerate(self.blocks):
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, angles, use_reentrant=False)
            else:
                x = block(x, angles, cache, layer)
        if cache is not None:
            cache.past = stop
        return self.norm(x)

    def logits(self, hidden: Tensor, ids: slice = slice(None)) -> Tensor:
        """(..., C) -> scores (..., n) of the ids in a range, or of all."""
        weight = self.tokens.weight if self.head is None else self.head.weight
        return F.linear(hidden, weight[ids])


class Generator(Pretrained):
    """Writes the ids of clips.

    Args:
        config: sizes, with `layout` and `num_classes` known.
        class_names: names of the classes, where they have names.
    """

    config_class = GeneratorConfig
    card_info = CARD

    def __init__(self, config: GeneratorConfig, class_names: Sequence[str] | None = None):
        super().__init__()
        if config.layout is None or (config.num_classes is None and config.given_frames is None):
            raise ValueError("generator.layout and generator.num_classes must be known: take them from token shards")
        self.config = config = replace(config, num_classes=config.num_classes or 0)
        if class_names is not None and len(class_names) != config.num_classes:
            raise ValueError(f"{len(class_names)} class names for {config.num_classes} classes")
        self.class_names = tuple(class_names) if class_names is not None else None
        self.sequence: SequenceLayout = config.sequence
        self.transformer = CausalTransformer(config, self.sequence.vocab_size, self.sequence.block_size)

    def assets(self) -> dict[str, Any]:
        return {"class_names": self.class_names}

    @classmethod
    def build(cls, config: GeneratorConfig, assets: dict[str, Any], tensors: dict[str, Tensor]) -> Generator:
        return cls(config, assets["class_names"])

    def forward(self, prompt: Tensor, target: Tensor) -> Tensor:
        """prompt (B, P), target (B, R) of `sequence` -> logits (B, R, vocabulary) of every place of the target."""
        hidden = self.transformer(torch.cat((prompt, target[:, :-1]), dim=1))
        return self.transformer.logits(hidden[:, self.sequence.prompt_length - 1 :])

    def classes(self, labels: Sequence[int | str] | Tensor) -> Tensor:
        """Class numbers (B,) from numbers or names. ValueError for an unknown class, naming the known ones."""
        if isinstance(labels, Tensor):
            return labels
        if isinstance(labels, str | int):
            raise ValueError(f"labels must be several, one for each sample; got {labels!r}: give [{labels!r}]")
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
        **settings: Any,
    ) -> Tensor:
        """Draw clips: global ids (B, L) int64, for a tokenizer's `decode`.

        A sample depends on (seed, its index), its condition and the settings, not on the batch it is drawn in, but for
        rounding in matrix products of other sizes, which very rarely moves a draw.

        Args:
            labels: class numbers or names, of generators with classes.
            given: (B, L) ids of clips of the given frames, of generators for frame prediction.
            num_samples: how many, of unconditional generators.
            indices: numbers of the samples; 0, 1, 2, ... by default.
            progress: called with 1 after every word.
            settings: fields of SamplingConfig: cfg_scale, cfg_schedule, temperature, top_k, top_p.

        Raises ValueError for settings out of range, a condition of the wrong kind or unknown, and guidance of a
        generator that was trained without class dropout.
        """
        how = SamplingConfig(**settings)
        prompt = self._prompt(labels, given, num_samples)
        indices = range(len(prompt)) if indices is None else indices
        if len(indices) != len(prompt):
            raise ValueError(f"{len(indices)} indices for {len(prompt)} samples")
        chances = random_streams(seed, indices, self.sequence.layout.length).to(prompt.device)
        if how.guided:
            prompt = torch.cat((prompt, self._unconditional(len(prompt))))
        return self._write(prompt, chances, how, progress)

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
            raise ValueError(f"at least one sample must be asked for; got {count}")
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
        self, prompt: Tensor, chances: Tensor, how: SamplingConfig, progress: Callable[[int], None] | None
    ) -> Tensor:
        """The words, one forward pass each; separators are read along with the words that they follow."""
        sequence, transformer, batch = self.sequence, self.transformer, len(chances)
        cache = Cache(self.config.num_layers, sequence.block_size)
        words: list[Tensor] = []
        unread = [prompt]
        for run, segment in zip(sequence.separators, sequence.layout.segments, strict=True):
            unread.append(torch.tensor(run, device=prompt.device).expand(len(prompt), -1))
            first = sequence.word_start + segment.vocab_start
            for _ in range(segment.length):
                hidden = transformer(torch.cat(unread, dim=1), cache)[:, -1]
                logits = transformer.logits(hidden, slice(first, first + segment.vocab_size)).float()
                if how.guided:
                    scale = scale_at(how.cfg_scale, how.cfg_schedule, len(words), sequence.layout.length)
                    conditional, unconditional = logits.chunk(2)
                    logits = guide(conditional, unconditional, scale)
                words.append(segment.vocab_start + self._choose(logits, chances[:, len(words)], how))
                unread = [(sequence.word_start + words[-1])[:, None].repeat(len(prompt) // batch, 1)]
                if progress is not None:
                    progress(1)
        return torch.stack(words, dim=1)

    @staticmethod
    def _choose(logits: Tensor, chances: Tensor, how: SamplingConfig) -> Tensor:
        if how.temperature == 0:
            return logits.argmax(-1)
        return draw(filter_logits(logits / how.temperature, how.top_k, how.top_p), chances)
