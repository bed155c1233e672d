"""Configuration of the generator and of sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sweettok.config import choice, positive
from sweettok.generator.sequence import SequenceLayout
from sweettok.tokenizer.layout import TokenLayout


@dataclass(frozen=True)
class GeneratorConfig:
    """Decoder-only transformer over the ids of a clip; the defaults are the release's.

    `layout`, `num_classes` and `tokenizer_hash` come from the token shards in training. Where they are set, they must
    agree with the shards.
    """

    dim: int = 1536  # width
    num_layers: int = 24  # transformer blocks
    num_heads: int = 16  # attention heads; must divide `dim`
    positions: str = "learned"  # "learned" (release) or "rotary"
    qk_norm: bool = False  # normalise queries and keys (RMS norm); not in the release
    tied_head: bool = False  # share the weights of embedding and output layer; not in the release
    layout: TokenLayout | None = None  # order and vocabulary ranges of the ids
    num_classes: int | None = None  # classes of a class-conditional generator; 0: unconditional
    # Share of training clips whose class is replaced by the null class, which guidance needs; 0: no null class.
    class_dropout: float = 0.1
    # Frame prediction: number of given frames at the start of a clip, whose ids are those of a clip of their own.
    given_frames: int | None = None
    tokenizer_hash: str | None = None  # identifies the tokenizer that wrote the ids

    def __post_init__(self):
        positive(self, "generator", "dim", "num_layers", "num_heads", "given_frames")
        choice("generator.positions", self.positions, ("learned", "rotary"))
        if self.dim % self.num_heads:
            raise ValueError(f"generator.dim {self.dim} does not divide into {self.num_heads} heads")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head width; got {self.dim} / {self.num_heads}")
        if self.num_classes is not None and self.num_classes < 0:
            raise ValueError(f"generator.num_classes must be at least 0; got {self.num_classes}")
        if not 0 <= self.class_dropout < 1:
            raise ValueError(f"generator.class_dropout must be in [0, 1); got {self.class_dropout}")
        if self.given_frames is not None and self.num_classes:
            raise ValueError("a generator is conditioned on classes or on given frames: set num_classes to 0")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def sequence(self) -> SequenceLayout:
        """Layout of the sequences; needs `layout` and `num_classes`."""
        null_class = self.num_classes > 0 and self.class_dropout > 0
        return SequenceLayout(self.layout, self.num_classes, null_class, self.given_frames is not None)


LEAST_TEMPERATURE = 1e-4  # besides 0


@dataclass(frozen=True)
class SamplingConfig:
    """How ids are drawn from a generator's logits."""

    # Classifier-free guidance: unconditional + scale * (conditional - unconditional) logits; 1: no guidance.
    cfg_scale: float = 1.0
    cfg_schedule: str = "constant"  # "constant", or "linear": from 1 at the first id to cfg_scale at the last
    temperature: float = 1.0  # logits are divided by it; 0: always the likeliest id
    top_k: int | None = None  # draw among the k likeliest ids; null: among all
    top_p: float | None = None  # draw among the likeliest ids that together have this probability; null: among all

    def __post_init__(self):
        choice("cfg_schedule", self.cfg_schedule, ("constant", "linear"))
        for name in ("cfg_scale", "temperature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number of at least 0; got {getattr(self, name)}")
        if 0 < self.temperature < LEAST_TEMPERATURE:  # logits divided by less may not be finite
            least = f"0 (always the likeliest word), or at least {LEAST_TEMPERATURE:g}"
            raise ValueError(f"temperature must be {least}; got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, or null for all words; got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], or null for all words; got {self.top_p}")

    @property
    def guided(self) -> bool:
        return self.cfg_scale != 1.0
