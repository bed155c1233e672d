"""Spatial pretraining: the spatial branch alone learns the proxy's codes of images, for stage 1 to start from."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from sweettok.data.config import DataConfig
from sweettok.stages.stage1 import CodeTask, SpatialLossConfig
from sweettok.tokenizer.config import TokenizerConfig
from sweettok.train.config import OptimizerConfig, TrainConfig


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


class SpatialTask(CodeTask):
    """Encoder, queries, word lists and decoder as far as an image passes through them, and nothing else."""

    name = "spatial"

    def __init__(self, run: SpatialRun):
        super().__init__(run, self.read_prior(run.prior).spatial)
        data, proxy = run.data, self.model.config.proxy
        self.train_dataset = self.read_images(data.train, data, proxy, run.train.seed)
        self.validation_dataset = self.read_stills(data, proxy)
        if run.warm_start:
            self.warm_start()
        self.play()
