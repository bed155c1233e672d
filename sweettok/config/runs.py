"""What a training run needs beside its model: data, losses, optimizers, the loop; and the runs themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional, Tuple, Union  # noqa: UP035  (OmegaConf reads these annotations)

from omegaconf import MISSING

from sweettok.config.checks import choice, positive
from sweettok.config.models import (
    DiscriminatorConfig,
    GeneratorConfig,
    ProxyConfig,
    SamplingConfig,
    TokenizerConfig,
)

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
        choice("perceptual.kind", self.kind, ("convnext", "lpips", "none"))


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
        choice("loss.reconstruction", self.reconstruction, ("l1", "l2"))


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
class Stage2LossConfig:
    reconstruction: str = "l2"
    reconstruction_weight: float = 4.0
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)

    def __post_init__(self):
        choice("loss.reconstruction", self.reconstruction, ("l1", "l2"))


@dataclass(frozen=True)
class GeneratorLossConfig:
    label_smoothing: float = 0.1

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"loss.label_smoothing must be in [0, 1); got {self.label_smoothing}")


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
    # Seconds that reading a clip may take. One that takes longer counts as damaged: training takes another clip.
    read_timeout: float = 120.0

    def __post_init__(self):
        positive(self, "data", "read_timeout")
        choice("data.resize", self.resize, ("stretch", "short_side_crop"))
        choice("data.short", self.short, ("black", "repeat", "error"))


@dataclass(frozen=True)
class TokenDataConfig:
    """Folders of token shards."""

    train: str = MISSING
    validation: Optional[str] = None  # noqa: UP045
    num_workers: int = 2


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
        positive(self, "optimizer", "lr", "eps", "max_grad_norm")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas must be two numbers in [0, 1); got {list(self.betas)}")
        choice("optimizer.decay_rule", self.decay_rule, ("by_type", "release"))


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
    # Metric of validation whose best model is exported to `<output_dir>/best`, as "psnr", and which end of it is best.
    best_metric: Optional[str] = None  # noqa: UP045
    best_mode: str = "max"
    # A step whose losses or gradients are not finite changes nothing; more of them in a row end the run.
    max_skipped_steps: int = 20
    # More clips than this that cannot be read end the run.
    max_bad_clips: int = 100
    trackers: Tuple[str, ...] = ()  # noqa: UP006
    project: str = "sweettok"

    def __post_init__(self):
        object.__setattr__(self, "trackers", tuple(self.trackers))
        if self.mixed_precision == "False":  # what YAML makes of an unquoted no
            object.__setattr__(self, "mixed_precision", "no")
        positive(self, "train", "max_steps", "global_batch_size", "micro_batch_size")
        choice("train.mixed_precision", self.mixed_precision, ("no", "fp16", "bf16"))
        choice("train.best_mode", self.best_mode, ("max", "min"))
        if self.best_metric is not None and self.eval_every <= 0:
            raise ValueError(f"train.best_metric={self.best_metric} needs validation: set train.eval_every above 0")
        for name in ("max_skipped_steps", "max_bad_clips"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} must be at least 0; got {getattr(self, name)}")
        for tracker in self.trackers:
            choice("train.trackers", tracker, ("wandb", "tensorboard"))


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
class SpatialRun:
    """Train the spatial branch alone to predict the proxy's codes of images, for stage 1 to start from.

    `data` names images, or videos, of which a frame is drawn; `stride` and `short` have no meaning for them.
    """

    stage: str = "spatial"
    proxy: str = MISSING  # trained proxy: a folder of ours, or the published file
    prior: str = MISSING  # folder with the word graphs
    warm_start: bool = False  # as in stage 1, from the first images
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: SpatialLossConfig = field(default_factory=SpatialLossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
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
    # With `init`, what that does not hold.
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


@dataclass(frozen=True)
class GeneratorRun:
    """Train a generator on token shards."""

    stage: str = "generator"
    # Decodes the samples to look at; its ids must be those of the shards. Null: no samples.
    tokenizer: Optional[str] = None  # noqa: UP045
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    data: TokenDataConfig = field(default_factory=TokenDataConfig)
    loss: GeneratorLossConfig = field(default_factory=GeneratorLossConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


RunConfig = Union[ProxyRun, SpatialRun, Stage1Run, Stage2Run, GeneratorRun]  # noqa: UP007
RUNS = {
    "proxy": ProxyRun, "spatial": SpatialRun, "stage1": Stage1Run, "stage2": Stage2Run, "generator": GeneratorRun,
}  # fmt: skip
