"""Spatial pretraining: the spatial branch alone learns the proxy's codes of images, for stage 1 to start from."""

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
    """Train the spatial branch alone to predict the proxy's codes of images, for stage 1 to start from.

    `data` names images, or videos, of which one frame is drawn; `stride` and `short` do not apply to them.
    """

    stage: str = "spatial"
    proxy: str = MISSING  # trained proxy: a folder, or the published file
    prior: str = MISSING  # folder with the word graphs
    warm_start: bool = False  # fit fresh weights to the proxy and to some images, as in stage 1
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: CodeLossConfig = field(default_factory=CodeLossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


class SpatialTask(CodeTask):
    """Trains encoder, queries, word lists and decoder as far as an image passes through them."""

    name = "spatial"
    run_class = SpatialRun

    def __init__(self, run: SpatialRun, inputs: Inputs | None = None):
        inputs = inputs or Inputs()
        super().__init__(run, inputs.prior(run.prior, run.tokenizer.words).spatial, inputs)
        self.open_clips(inputs, run.data, image_size(run.tokenizer.proxy))
        if run.warm_start and inputs.readable:
            self.warm_start()
        self.make_optimizer()
