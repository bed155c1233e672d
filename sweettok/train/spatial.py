"""Spatial pretraining: the spatial branch alone learns the proxy's codes of images, for stage 1 to start from."""

from __future__ import annotations

from sweettok.config import SpatialRun
from sweettok.train.stage1 import CodeTask


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
