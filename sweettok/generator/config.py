"""Sizes of the generator and settings of sampling; the defaults are the release's."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sweettok.config import choice, positive
from sweettok.generator.sequence import SequenceLayout
from sweettok.tokenizer.layout import TokenLayout


@dataclass(frozen=True)
class GeneratorConfig:
    """Decoder-only transformer over the ids of a clip; the defaults are the release's.

    `layout`, `num_classes` and `tokenizer_hash` are facts of the token shards that a generator is trained on: null
    takes theirs, and a value must equal theirs.
    """

    dim: int = 1536  # width
    num_layers: int = 24  # transformer blocks
    num_heads: int = 16  # attention heads; `dim` is divided among them
    positions: str = "learned"  # "learned" (release) or "rotary"
    qk_norm: bool = False  # normalise queries and keys (RMS norm); not in the release
    tied_head: bool = False  # use the embeddings as the output layer's weights; not in the release
    layout: TokenLayout | None = None  # order and vocabulary ranges of the ids
    num_classes: int | None = None  # classes that are conditions; 0: an unconditional generator
    # Share of training clips whose class is replaced by the null class, which guidance needs; 0: no null class.
    class_dropout: float = 0.1
    # Frame prediction: frames at the start of a clip that are given, as the ids of a clip of their own.
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
        """What is read and written; once `layout` and `num_classes` are known."""
        null_class = self.num_classes > 0 and self.class_dropout > 0
        return SequenceLayout(self.layout, self.num_classes, null_class, self.given_frames is not None)


@dataclass(frozen=True)
class SamplingConfig:
    """How ids are drawn from a generator's logits."""

    # Classifier-free guidance: logits without a class + scale * (logits of the class - these); 1: no guidance.
    cfg_scale: float = 1.0
    cfg_schedule: str = "constant"  # "constant", or "linear": from 1 at the first id to cfg_scale at the last
    temperature: float = 1.0  # logits are divided by it; 0: always the likeliest id
    top_k: int | None = None  # draw among the k likeliest ids; null: among all
    top_p: float | None = None  # draw among the likeliest ids that together have this probability; null: among all

    def __post_init__(self):
        choice("cfg_schedule", self.cfg_schedule, ("constant", "linear"))
        for name, low in (("cfg_scale", 0.0), ("temperature", 0.0)):
            if not low <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number of at least {low:.0f}; got {getattr(self, name)}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, or null for all words; got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], or null for all words; got {self.top_p}")

    @property
    def guided(self) -> bool:
        return self.cfg_scale != 1.0
