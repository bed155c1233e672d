"""Spatial pretraining: the spatial branch alone predicts the proxy's codes of images. Stage 1 can start from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from sweettok.data.config import DataConfig
from sweettok.stages.codes import CodeLossConfig, CodeTask
from sweettok.stages.inputs import Inputs, image_size
from sweettok.tokenizer.config import TokenizerConfig
from sweettok.train.config import OptimizerConfig, TrainConfig


@dataclass(frozen=True)
class SpatialRun:
    """Train the spatial branch alone to predict the proxy's codes of images, as initial weights of stage 1.

    `data` is of images, or of videos, from which one frame is drawn; `stride` and `short` have no effect.
    """

    stage: str = "spatial"
    proxy: str = MISSING  # trained proxy: a folder, or the published file
    prior: str = MISSING  # folder with the word graphs
    warm_start: bool = False  # fit the initial weights to the proxy and to some images, as in stage 1
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: CodeLossConfig = field(default_factory=CodeLossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


class SpatialTask(CodeTask):
    """Trains the modules that an image passes through."""

    name = "spatial"
    run_class = SpatialRun

    def __init__(self, run: SpatialRun, inputs: Inputs | None = None):
        inputs = inputs or Inputs()
        super().__init__(run, inputs.prior(run.prior, run.tokenizer.words).spatial, inputs)
        self.open_clips(inputs, run.data, image_size(run.tokenizer.proxy))
        if run.warm_start and inputs.readable:
            self.warm_start()
        self.make_optimizer()
