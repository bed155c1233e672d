"""Settings of optimizers and of the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Protocol, Tuple  # noqa: UP035  (OmegaConf reads these annotations)

from omegaconf import MISSING

from sweettok.config import choice, positive


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


class RunConfig(Protocol):
    """What every run configuration has: its stage, its data and the settings of the loop."""

    stage: str
    data: Any
    train: TrainConfig
