"""Every setting of the library as typed, frozen dataclasses, and the one function that reads them.

A YAML file holds only what differs from the defaults below, which are the release's values. Unknown keys are errors,
dotted overrides (`train.max_steps=100`) work on every command line, and `???` marks what has no default.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Tuple, Union  # noqa: UP035  (OmegaConf reads these annotations)

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def _positive(config: Any, section: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value not in (None, MISSING) and value <= 0:
            raise ValueError(f"{section}.{name} must be above 0; got {value}")


def _pattern(name: str, value: str, letters: str) -> None:
    if not value or set(value) - set(letters):
        raise ValueError(f"{name} must be a non-empty string over {list(letters)} (one letter a layer); got {value!r}")


# ---------------------------------------------------------------------------------------------------------- models


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
        _positive(self, "block", "dim", "num_heads", "head_dim", "ff_mult", "window_size")
        _choice("block.temporal_peg", self.temporal_peg, ("scrambled", "grid"))
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
        _positive(self, "proxy", "patch_size", "temporal_patch_size", "num_codes", "code_dim")
        _pattern("proxy.encoder_spatial", self.encoder_spatial, "tw")
        _pattern("proxy.decoder_spatial", self.decoder_spatial, "tw")
        _pattern("proxy.encoder_temporal", self.encoder_temporal, "t")
        _pattern("proxy.decoder_temporal", self.decoder_temporal, "t")
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
        _positive(self, "tokenizer", "head_hidden", "modifiers_per_query", "codebook_dim", "graph_hidden")
        if not 0 <= self.graph_dropout < 1:
            raise ValueError(f"tokenizer.graph_dropout must be in [0, 1); got {self.graph_dropout}")
        if self.num_null_kv < 0:
            raise ValueError(f"tokenizer.num_null_kv must be at least 0; got {self.num_null_kv}")
        _pattern("tokenizer.encoder_spatial", self.encoder_spatial, "tw")
        _pattern("tokenizer.decoder_spatial", self.decoder_spatial, "tw")
        _pattern("tokenizer.encoder_temporal", self.encoder_temporal, "t")
        _pattern("tokenizer.decoder_temporal", self.decoder_temporal, "t")
        _choice("tokenizer.spatial_source", self.spatial_source, ("all_slices", "first_frame"))
        _choice("tokenizer.temporal_source", self.temporal_source, ("differences", "first_frame_residuals"))
        _choice("tokenizer.pixel_path", self.pixel_path, ("expected", "argmax", "none"))
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
                raise ValueError(f"{name} {rows}x{columns} does not divide into windows of {size}x{size}")

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise ValueError, naming what would fit, for a clip that the tokenizer cannot take."""
        if (height, width) != (self.height, self.width):
            raise ValueError(
                f"frames are {height}x{width}, but this tokenizer's tables are for {self.height}x{self.width}: "
                "resize the clip (read_clip does) or build the tokenizer for that size"
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


# ---------------------------------------------------------------------------------------------------------- losses


@dataclass(frozen=True)
class PerceptualConfig:
    """Frozen network that compares one random frame of each clip."""

    kind: str = "convnext"  # ConvNeXt-S class scores (release), "lpips" (VGG-16; paper), or "none"
    weight: float = 0.1
    weights: Optional[str] = None  # noqa: UP045  (backbone file; null looks in torchvision's cache)
    linear_weights: Optional[str] = None  # noqa: UP045  (LPIPS only: its published linear layers)
    untrained: bool = False  # allow a random network, for tests; never for results

    def __post_init__(self):
        _choice("perceptual.kind", self.kind, ("convnext", "lpips", "none"))


@dataclass(frozen=True)
class AdversarialConfig:
    """Hinge game against the 3D discriminator; every factor that the release multiplies in is written out here."""

    generator_weight: float = 0.01
    feature_matching_weight: float = 0.04
    discriminator_weight: float = 0.01
    start_step: int = 20000


@dataclass(frozen=True)
class ProxyLossConfig:
    reconstruction: str = "l1"
    reconstruction_weight: float = 4.0
    commitment_weight: float = 0.25
    perceptual: PerceptualConfig = field(default_factory=lambda: PerceptualConfig(kind="lpips", weight=4.0))
    adversarial: AdversarialConfig = field(
        default_factory=lambda: AdversarialConfig(feature_matching_weight=4.0, start_step=0)
    )

    def __post_init__(self):
        _choice("loss.reconstruction", self.reconstruction, ("l1", "l2"))


@dataclass(frozen=True)
class Stage1LossConfig:
    code_weight: float = 1.0
    label_smoothing: float = 0.0
    quantizer_weight: float = 1.0
    # The release weighs the codebook's side by 0.25 and the encoder's side fully.
    encoder_side_weight: float = 1.0
    codebook_side_weight: float = 0.25
    # Linear readout of the proxy's code vectors from each temporal query, at its own place: a short path that lets
    # encoder and word lists learn before the decoder does. Not in the release (0).
    guide_weight: float = 0.0


@dataclass(frozen=True)
class Stage2LossConfig:
    reconstruction: str = "l2"
    reconstruction_weight: float = 4.0
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)

    def __post_init__(self):
        _choice("loss.reconstruction", self.reconstruction, ("l1", "l2"))


# -------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class DataConfig:
    """Clips: a list file (path TAB label), a CSV, or a folder of class folders."""

    train: str = MISSING
    validation: Optional[str] = None  # noqa: UP045
    root: Optional[str] = None  # noqa: UP045
    stride: int = 1
    resize: str = "stretch"
    short: str = "black"
    num_workers: int = 8

    def __post_init__(self):
        _choice("data.resize", self.resize, ("stretch", "short_side_crop"))
        _choice("data.short", self.short, ("black", "repeat", "error"))


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine that ends, and stays, at `end_lr`; counted in optimizer steps."""

    lr: float = 1e-4
    end_lr: float = 1e-5
    warmup_steps: int = 0
    betas: Tuple[float, float] = (0.9, 0.99)  # noqa: UP006
    eps: float = 1e-8
    weight_decay: float = 1e-4
    # Which parameters decay: "by_type" (matrices of linear and convolution layers) or "release" (its name rule).
    decay_rule: str = "by_type"
    max_grad_norm: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "betas", tuple(self.betas))
        _positive(self, "optimizer", "lr", "eps", "max_grad_norm")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas must be two numbers in [0, 1); got {list(self.betas)}")
        _choice("optimizer.decay_rule", self.decay_rule, ("by_type", "release"))


@dataclass(frozen=True)
class CodebookConfig:
    """Moving-average training of the proxy's code table."""

    decay: float = 0.99
    # A code used less than this share of the mean is moved onto a feature of the current batch; 0 turns it off.
    dead_threshold: float = 0.05

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise ValueError(f"codebook.decay must be in [0, 1); got {self.decay}")


@dataclass(frozen=True)
class TrainConfig:
    output_dir: str = MISSING
    max_steps: int = MISSING
    global_batch_size: int = MISSING
    # Clips a device holds at once; null takes the whole share. Less than the share means gradient accumulation.
    micro_batch_size: Optional[int] = None  # noqa: UP045
    seed: int = 42
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    ema_decay: float = 0.999
    resume: bool = True
    log_every: int = 50
    sample_every: int = 1000
    num_samples: int = 2
    save_every: int = 10000
    eval_every: int = 10000
    eval_clips: Optional[int] = None  # noqa: UP045
    keep_checkpoints: Optional[int] = None  # noqa: UP045
    trackers: Tuple[str, ...] = ()  # noqa: UP006
    project: str = "sweettok"

    def __post_init__(self):
        object.__setattr__(self, "trackers", tuple(self.trackers))
        _positive(self, "train", "max_steps", "global_batch_size", "micro_batch_size")
        _choice("train.mixed_precision", self.mixed_precision, ("no", "fp16", "bf16"))
        for tracker in self.trackers:
            _choice("train.trackers", tracker, ("wandb", "tensorboard"))


@dataclass(frozen=True)
class ProxyRun:
    """Train a proxy tokenizer from scratch, on clips and single frames alike."""

    stage: str = "proxy"
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    images: Optional[str] = None  # noqa: UP045  (list or folder of images; null draws single frames from the clips)
    image_weight: float = 0.5  # share of the loss that images get beside the clips of each step
    data: DataConfig = field(default_factory=DataConfig)
    loss: ProxyLossConfig = field(default_factory=ProxyLossConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class Stage1Run:
    """Train encoder, codebooks and decoder to predict the proxy's codes."""

    stage: str = "stage1"
    proxy: str = MISSING  # trained proxy: a folder of ours, or the published file
    prior: str = MISSING  # folder with the word graphs
    init: Optional[str] = None  # noqa: UP045  (weights to start from: a folder of ours, or a published file)
    # Fit fresh weights to the proxy and to the first clips: the head starts from the geometry of the proxy's codes,
    # latents and word codes from one distribution. Learning starts at once instead of after thousands of steps.
    warm_start: bool = False
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: Stage1LossConfig = field(default_factory=Stage1LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class Stage2Run:
    """Fine-tune decoder and pixel decoder on pixels; encoder and codebooks stay frozen."""

    stage: str = "stage2"
    tokenizer: str = MISSING  # output of stage 1: a folder of ours, or the published file
    proxy: Optional[str] = None  # noqa: UP045  (with a published stage-1 file: the proxy it was trained on)
    prior: Optional[str] = None  # noqa: UP045  (with a published stage-1 file: the folder with the word graphs)
    data: DataConfig = field(default_factory=DataConfig)
    loss: Stage2LossConfig = field(default_factory=Stage2LossConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


RunConfig = Union[ProxyRun, Stage1Run, Stage2Run]  # noqa: UP007
RUNS = {"proxy": ProxyRun, "stage1": Stage1Run, "stage2": Stage2Run}


# --------------------------------------------------------------------------------------------------------- reading


def build(cls: type, *sources: Any) -> Any:
    """Merge mappings or OmegaConf nodes over the defaults of dataclass `cls` and return a frozen instance of it.

    Raises ValueError for unknown keys, wrong types, missing values and inconsistent sizes.
    """
    try:
        node = OmegaConf.merge(OmegaConf.structured(cls), *sources)
        missing = sorted(OmegaConf.missing_keys(node))
        if missing:
            raise ValueError(f"no value for {', '.join(missing)}: set it in the YAML file or as {missing[0]}=...")
        return OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        key = f" (at {error.full_key!r})" if error.full_key else ""
        raise ValueError(f"configuration{key}: {str(error).splitlines()[0]}") from error


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a run's YAML file, apply `key.path=value` overrides, and return the typed configuration of its stage."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file at {path}")
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"override {override!r} is not of the form key.path=value")
    try:
        node = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        stage = node.get("stage")
    except (OSError, TypeError, AttributeError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} is no YAML file of settings: {str(error).splitlines()[0]}") from error
    if stage not in RUNS:
        raise ValueError(f"{path}: `stage` must be one of {', '.join(RUNS)}; got {stage!r}")
    try:
        return build(RUNS[stage], node)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def to_dict(config: Any) -> dict:
    """Plain nested dict of a configuration, for JSON and YAML."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return plain(dataclasses.asdict(config))
