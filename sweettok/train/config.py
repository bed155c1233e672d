"""Settings of optimizers and of the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from omegaconf import MISSING

from sweettok.config import choice, positive, whole


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, with a linear warm-up and a cosine decay of the learning rate over its steps."""

    # "adamw" (release), or "muon": orthogonalised momentum for the matrices of hidden layers and AdamW for the rest,
    # which needs about half the steps; "muon_all": for all linear layers. Not for sharded training.
    kind: str = "adamw"
    lr: float = 1e-4  # learning rate after the warm-up
    end_lr: float = 1e-5  # learning rate at the end of the run
    warmup_steps: int = 0  # steps from a learning rate of 0 to `lr`
    betas: tuple[float, float] = (0.9, 0.99)  # decay of the first and the second moments
    eps: float = 1e-8  # added to the root of the second moments
    weight_decay: float = 1e-4  # decoupled weight decay
    # Which parameters decay: "by_type" (matrices of linear and convolution layers) or "release" (its rule by names).
    decay_rule: str = "by_type"
    max_grad_norm: float = 1.0  # gradients of a larger global norm are scaled down to it

    def __post_init__(self):
        object.__setattr__(self, "betas", tuple(self.betas))
        positive(self, "optimizer", "lr", "eps", "max_grad_norm")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas must be two numbers in [0, 1); got {list(self.betas)}")
        choice("optimizer.kind", self.kind, ("adamw", "muon", "muon_all"))
        choice("optimizer.decay_rule", self.decay_rule, ("by_type", "release"))


@dataclass(frozen=True)
class TrainConfig:
    """The training loop. Steps are optimizer steps; 0 turns an interval off."""

    output_dir: str = MISSING  # folder of the run: log, checkpoints, samples, and the result as `final`
    max_steps: int = MISSING  # length of the run
    global_batch_size: int = MISSING  # clips per step, over all devices
    # Largest number of clips that a device processes at once; null: its whole share of a step. A larger share is
    # processed in several micro-batches, and gradients are accumulated.
    micro_batch_size: int | None = None
    seed: int = 42  # of all random numbers
    mixed_precision: str = "no"  # "no" (float32), "bf16", or "fp16" with loss scaling (GPUs only)
    tf32: bool = False  # compute float32 matrix products and convolutions in TF32 on GPUs that have it
    cudnn_benchmark: bool = False  # let cuDNN measure its convolution algorithms and use the fastest, on GPUs
    gradient_checkpointing: bool = False  # recompute layers in the backward pass: less memory, more compute
    compile: bool = False  # compile the trained modules with torch.compile
    ema_decay: float = 0.999  # decay of the moving average of the weights per step
    resume: bool = True  # from the latest checkpoint in `output_dir`
    log_every: int = 50  # steps between lines of the log
    sample_every: int = 1000  # steps between sample videos
    num_samples: int = 2  # number of sample videos each time
    save_every: int = 10000  # steps between checkpoints
    eval_every: int = 10000  # steps between validations
    eval_clips: int | None = None  # number of validation clips, spread evenly over the list; null: all
    keep_checkpoints: int | None = None  # number of latest checkpoints that are kept, at least 1; null: all
    best_metric: str | None = None  # validation metric such as "psnr"; the best model by it is exported to `best`
    best_mode: str = "max"  # whether the largest ("max") or the smallest ("min") value of `best_metric` is best
    # Steps with losses or gradients that are not finite are skipped; more than this number in a row end the run.
    max_skipped_steps: int = 20
    max_bad_clips: int = 100  # more unreadable clips than this end the run
    # A process without a step, a validation batch or a written file for so many seconds ends itself; 0: never.
    step_timeout: float = 3600
    trackers: tuple[str, ...] = ()  # trackers that also receive the log: "wandb", "tensorboard"
    project: str = "sweettok"  # project name for wandb

    def __post_init__(self):
        object.__setattr__(self, "trackers", tuple(self.trackers))
        if self.mixed_precision == "False":  # an unquoted `no` in YAML
            object.__setattr__(self, "mixed_precision", "no")
        positive(self, "train", "max_steps", "global_batch_size", "micro_batch_size", "eval_clips", "keep_checkpoints")
        choice("train.mixed_precision", self.mixed_precision, ("no", "fp16", "bf16"))
        choice("train.best_mode", self.best_mode, ("max", "min"))
        if self.best_metric is not None and self.eval_every <= 0:
            raise ValueError(f"train.best_metric={self.best_metric} needs validation: set train.eval_every above 0")
        whole(self, "train", 0, "log_every", "sample_every", "num_samples", "save_every", "eval_every")
        whole(self, "train", 0, "max_skipped_steps", "max_bad_clips")
        whole(self, "train", 0, "seed", most=2**32 - 1)  # numpy's largest
        if not self.step_timeout >= 0:  # not NaN either
            raise ValueError(f"train.step_timeout must be at least 0; got {self.step_timeout}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay must be in [0, 1); got {self.ema_decay}")
        for tracker in self.trackers:
            choice("train.trackers", tracker, ("wandb", "tensorboard"))


class RunConfig(Protocol):
    """The fields of every run configuration: stage, data and settings of the loop."""

    stage: str
    data: Any
    train: TrainConfig
