"""Configuration of the proxy tokenizer and of transformer layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sweettok.config import choice, pattern, positive
from sweettok.data.preprocess import Preprocessing


@dataclass(frozen=True)
class BlockConfig:
    """Sizes of all transformer layers of a model."""

    dim: int = 512  # width
    num_heads: int = 8  # attention heads
    head_dim: int = 64  # width of an attention head; a multiple of 4
    ff_mult: float = 4.0  # width of the feed-forward layers is dim * ff_mult * 2 / 3, as they are gated
    window_size: int = 8  # height and width of attention windows, in patches
    # Token order in the temporal layers' position convolution: "grid" is the (t, h, w) grid, "scrambled" the order that
    # the release's weights were trained with.
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

    @property
    def heads(self) -> dict[str, Any]:
        """Arguments of an attention layer of `sweettok.layers`."""
        return {"dim": self.dim, "num_heads": self.num_heads, "head_dim": self.head_dim}

    @property
    def layer(self) -> dict[str, Any]:
        """Arguments of a stack of layers."""
        return {**self.heads, "ff_dim": self.ff_dim}

    @property
    def spatial(self) -> dict[str, Any]:
        """Arguments of a SpatialTransformer."""
        return {**self.layer, "window_size": self.window_size}

    @property
    def temporal(self) -> dict[str, Any]:
        """Arguments of a TemporalTransformer."""
        return {**self.layer, "scrambled_peg": self.temporal_peg == "scrambled"}


@dataclass(frozen=True)
class ProxyConfig:
    """The proxy tokenizer (OmniTokenizer VQ); the defaults are the release's.

    Layer patterns have a letter for each layer: "t" full attention, "w" attention in windows. `num_frames`, `height`
    and `width` are the size of training clips, and of the tokenizer built on this proxy. The proxy accepts all clips
    that its patches and windows divide.
    """

    num_frames: int = 17  # 1 + a multiple of temporal_patch_size
    height: int = 256  # pixels, a multiple of patch_size * window_size
    width: int = 256  # pixels, a multiple of patch_size * window_size
    patch_size: int = 8  # height and width of a patch in pixels
    temporal_patch_size: int = 4  # frames of a patch; the first frame has patches of its own
    # Layer norms before and after the linear embedding of patches (release). The first removes brightness and contrast
    # of each patch, which must then be guessed: without them, small models train faster and better.
    patch_norm: bool = True
    block: BlockConfig = field(default_factory=BlockConfig)
    encoder_spatial: str = "ttww"  # layers of the encoder within a time slice
    encoder_temporal: str = "tttt"  # layers of the encoder over time
    decoder_temporal: str = "tttt"  # layers of the decoder over time
    decoder_spatial: str = "tttt"  # layers of the decoder within a time slice
    num_codes: int = 8192  # number of codes
    code_dim: int = 8  # width of a code
    # How clips are made from files: training sets it from `data`, and it is the default afterwards.
    preprocessing: Preprocessing = field(default_factory=Preprocessing, compare=False)

    def __post_init__(self):
        positive(self, "proxy", "patch_size", "temporal_patch_size", "num_codes", "code_dim")
        pattern("proxy.encoder_spatial", self.encoder_spatial, "tw")
        pattern("proxy.decoder_spatial", self.decoder_spatial, "tw")
        pattern("proxy.encoder_temporal", self.encoder_temporal, "t")
        pattern("proxy.decoder_temporal", self.decoder_temporal, "t")
        self.check_clip(self.num_frames, self.height, self.width)

    @property
    def patches(self) -> tuple[int, int]:
        """Size arguments of PatchEmbed and Unpatch."""
        return self.patch_size, self.temporal_patch_size

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise ValueError, naming the nearest valid sizes, for a clip size that the proxy does not support."""
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
