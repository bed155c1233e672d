"""Sizes and recipes of the models; the defaults are the release's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Optional, Tuple  # noqa: UP035  (OmegaConf reads these annotations)

from sweettok.config.checks import choice, pattern, positive
from sweettok.layout import LOOKUPS, SequenceLayout, TokenLayout


@dataclass(frozen=True)
class BlockConfig:
    """Sizes shared by all transformer layers of a model."""

    dim: int = 512
    num_heads: int = 8
    head_dim: int = 64
    ff_mult: float = 4.0
    window_size: int = 8
    # How temporal transformers lay tokens out for the position convolution: "scrambled" keeps the release's
    # reading of the memory order, which its weights were trained with; "grid" uses the true (t, h, w) grid.
    temporal_peg: str = "scrambled"

    def __post_init__(self):
        positive(self, "block", "dim", "num_heads", "head_dim", "ff_mult", "window_size")
        choice("block.temporal_peg", self.temporal_peg, ("scrambled", "grid"))
        if self.head_dim % 4:
            raise ValueError(f"block.head_dim must divide by 4 for 2-D rotary positions; got {self.head_dim}")

    @property
    def ff_dim(self) -> int:
        """Width of each of the two halves of the gated feed-forward layer."""
        return int(self.dim * self.ff_mult * 2 / 3)


@dataclass(frozen=True)
class ProxyConfig:
    """The proxy tokenizer (OmniTokenizer VQ) and the clip geometry that every other model shares.

    The proxy itself accepts any clip that its patches and windows divide; `num_frames`, `height` and `width` are
    the size it is trained at and the size of the tokenizer built on it.
    """

    num_frames: int = 17
    height: int = 256
    width: int = 256
    patch_size: int = 8
    temporal_patch_size: int = 4
    block: BlockConfig = field(default_factory=BlockConfig)
    encoder_spatial: str = "ttww"
    encoder_temporal: str = "tttt"
    decoder_temporal: str = "tttt"
    decoder_spatial: str = "tttt"
    num_codes: int = 8192
    code_dim: int = 8

    def __post_init__(self):
        positive(self, "proxy", "patch_size", "temporal_patch_size", "num_codes", "code_dim")
        pattern("proxy.encoder_spatial", self.encoder_spatial, "tw")
        pattern("proxy.decoder_spatial", self.decoder_spatial, "tw")
        pattern("proxy.encoder_temporal", self.encoder_temporal, "t")
        pattern("proxy.decoder_temporal", self.decoder_temporal, "t")
        self.check_clip(self.num_frames, self.height, self.width)

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise ValueError, with the nearest valid size, for a clip that the proxy cannot take."""
        step = self.temporal_patch_size
        if num_frames < 1 or (num_frames - 1) % step:
            low = 1 + max(num_frames - 1, 0) // step * step
            raise ValueError(f"{num_frames} frames do not fit: 1 + a multiple of {step} fits ({low} or {low + step})")
        windows = "w" in self.encoder_spatial + self.decoder_spatial
        unit = self.patch_size * (self.block.window_size if windows else 1)
        for name, size in (("height", height), ("width", width)):
            if size < unit or size % unit:
                low = max(size // unit, 1) * unit
                raise ValueError(f"{name} {size} does not fit: a multiple of {unit} is needed ({low} or {low + unit})")

    def grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent grid (t, h, w) of a clip of this size."""
        return 1 + (num_frames - 1) // self.temporal_patch_size, height // self.patch_size, width // self.patch_size


@dataclass(frozen=True)
class WordsConfig:
    """Sizes of the four word lists; null takes what the prior holds, a number must match it."""

    adjectives: Optional[int] = None  # noqa: UP045
    nouns: Optional[int] = None  # noqa: UP045
    adverbs: Optional[int] = None  # noqa: UP045
    verbs: Optional[int] = None  # noqa: UP045


@dataclass(frozen=True)
class TokenizerConfig:
    """SweetTok: decoupled query autoencoder (DQAE) and language codebooks (MLC) over the proxy's code grid."""

    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    block: BlockConfig = field(default_factory=BlockConfig)
    encoder_spatial: str = "ttwwtttt"
    encoder_temporal: str = "tttt"
    decoder_spatial: str = "tttttttt"
    decoder_temporal: str = "tttt"
    spatial_query_grid: Tuple[int, int] = (16, 16)  # noqa: UP006
    num_null_kv: int = 2
    head_hidden: int = 1024
    words: WordsConfig = field(default_factory=WordsConfig)
    # What a query says: the nearest modifiers and the nearest head word (release), or the nearest word of its two
    # lists together (paper).
    lookup: str = "modifiers_and_head"
    modifiers_per_query: int = 2
    codebook_dim: int = 256
    graph_hidden: int = 256
    graph_dropout: float = 0.5
    # What the spatial branch reads: all slices, averaged over time (release), or the first frame (paper).
    spatial_source: str = "all_slices"
    # What the temporal branch reads: differences of consecutive slices (release) or to the first slice (paper).
    temporal_source: str = "differences"
    # From logits to pixels: expected code vector (stage 2), the likeliest code (stage 1), or no pixel decoder.
    pixel_path: str = "expected"

    def __post_init__(self):
        object.__setattr__(self, "spatial_query_grid", tuple(self.spatial_query_grid))
        if len(self.spatial_query_grid) != 2 or min(self.spatial_query_grid) < 1:
            raise ValueError(f"tokenizer.spatial_query_grid must be two sizes; got {list(self.spatial_query_grid)}")
        positive(self, "tokenizer", "head_hidden", "modifiers_per_query", "codebook_dim", "graph_hidden")
        if not 0 <= self.graph_dropout < 1:
            raise ValueError(f"tokenizer.graph_dropout must be in [0, 1); got {self.graph_dropout}")
        if self.num_null_kv < 0:
            raise ValueError(f"tokenizer.num_null_kv must be at least 0; got {self.num_null_kv}")
        pattern("tokenizer.encoder_spatial", self.encoder_spatial, "tw")
        pattern("tokenizer.decoder_spatial", self.decoder_spatial, "tw")
        pattern("tokenizer.encoder_temporal", self.encoder_temporal, "t")
        pattern("tokenizer.decoder_temporal", self.decoder_temporal, "t")
        choice("tokenizer.lookup", self.lookup, LOOKUPS)
        if self.lookup == "union" and self.modifiers_per_query != type(self).modifiers_per_query:
            raise ValueError(
                "with tokenizer.lookup union a query gives one word: leave tokenizer.modifiers_per_query out; "
                f"got {self.modifiers_per_query}"
            )
        choice("tokenizer.spatial_source", self.spatial_source, ("all_slices", "first_frame"))
        choice("tokenizer.temporal_source", self.temporal_source, ("differences", "first_frame_residuals"))
        choice("tokenizer.pixel_path", self.pixel_path, ("expected", "argmax", "none"))
        if len(self.decoder_spatial) % len(self.decoder_temporal):
            raise ValueError(
                f"tokenizer.decoder_spatial has {len(self.decoder_spatial)} layers, which the "
                f"{len(self.decoder_temporal)} layers of decoder_temporal do not divide"
            )
        for name in ("encoder_spatial", "decoder_spatial"):
            if getattr(self, name).endswith("w"):
                raise ValueError(
                    f"tokenizer.{name} must end in t: a window layer looks at no other branch, and nothing would see "
                    f"the last layer; got {getattr(self, name)!r}"
                )
        self.check_clip(self.num_frames, self.height, self.width)
        self._check_windows()

    def _check_windows(self) -> None:
        size = self.block.window_size
        _, h, w = self.grid
        grids = {}
        if "w" in self.encoder_spatial:
            grids = {"latent grid": (h, w), "tokenizer.spatial_query_grid": self.spatial_query_grid}
        elif "w" in self.decoder_spatial:
            grids = {"latent grid": (h, w)}
        if "w" in self.decoder_spatial:
            grids["tokenizer.spatial_query_grid"] = self.spatial_query_grid
        for name, (rows, columns) in grids.items():
            if rows % size or columns % size:
                hint = ""
                if name == "latent grid":
                    hint = f": height and width must be multiples of {self.proxy.patch_size * size}"
                raise ValueError(f"{name} {rows}x{columns} does not divide into windows of {size}x{size}{hint}")

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise ValueError, naming what would fit, for a clip that the tokenizer cannot take."""
        if (height, width) != (self.height, self.width):
            raise ValueError(
                f"frames are {height}x{width}, but this tokenizer's tables are for {self.height}x{self.width}: "
                f"resize the clip (read_clip does) or take at_size({height}, {width})"
            )
        self.proxy.check_clip(num_frames, height, width)
        if num_frames == 1:
            raise ValueError(
                f"one frame has no motion to tokenize: at least {1 + self.proxy.temporal_patch_size} frames are needed"
            )

    @property
    def num_frames(self) -> int:
        return self.proxy.num_frames

    @property
    def height(self) -> int:
        return self.proxy.height

    @property
    def width(self) -> int:
        return self.proxy.width

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent grid (t, h, w) of a clip of the configured length."""
        return self.proxy.grid(self.num_frames, self.height, self.width)

    @property
    def query_grids(self) -> dict[str, tuple[int, int]]:
        """Rows and columns in which the queries of each branch stand; both grids cover the whole frame."""
        return {"spatial": self.spatial_query_grid, "temporal": self.grid[1:]}

    @property
    def latent_dim(self) -> int:
        """Width of a query's latent: one code, or a modifier half and a head half."""
        return self.codebook_dim if self.lookup == "union" else 2 * self.codebook_dim

    @property
    def num_spatial_queries(self) -> int:
        return self.spatial_query_grid[0] * self.spatial_query_grid[1]

    @property
    def num_temporal_queries(self) -> int:
        """One query per place of the latent grid."""
        return self.grid[1] * self.grid[2]


@dataclass(frozen=True)
class DiscriminatorConfig:
    """3D patch discriminator."""

    in_channels: int = 3
    base_channels: int = 64
    num_layers: int = 3


@dataclass(frozen=True)
class GeneratorConfig:
    """Decoder-only transformer over the words of a clip; the defaults are the release's body.

    `layout`, `num_classes` and `tokenizer_hash` are facts of the token shards that a generator is trained on: null
    takes theirs, a value must match them.
    """

    dim: int = 1536
    num_layers: int = 24
    num_heads: int = 16
    positions: str = "learned"  # or "rotary"
    qk_norm: bool = False
    tied_head: bool = False
    layout: Optional[TokenLayout] = None  # noqa: UP045
    num_classes: Optional[int] = None  # noqa: UP045  (0: unconditional)
    # Share of training clips whose class is replaced by the null class, which guidance needs; 0: no null class.
    class_dropout: float = 0.1
    # Frame prediction: frames at the start of a clip that are given, as the ids of a clip of their own.
    given_frames: Optional[int] = None  # noqa: UP045
    tokenizer_hash: Optional[str] = None  # noqa: UP045

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

    # logits of no class + cfg_scale * (logits of the class - logits of no class); 1: no guidance.
    cfg_scale: float = 1.0
    cfg_schedule: str = "constant"  # or "linear": from 1 at the first word to cfg_scale at the last
    temperature: float = 1.0  # 0: always the likeliest word
    top_k: Optional[int] = None  # noqa: UP045  (of the words that the place allows)
    top_p: Optional[float] = None  # noqa: UP045

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
