"""Spatial pretraining: the spatial branch alone learns the proxy's codes of images, for stage 1 to start from."""

from __future__ import annotations

from sweettok.config import DataConfig, ProxyConfig, SpatialRun
from sweettok.data.dataset import ClipDataset
from sweettok.data.lists import load_clips
from sweettok.priors import load_prior
from sweettok.train.stage1 import CodeTask
from sweettok.train.video import image_dataset


class SpatialTask(CodeTask):
    """Encoder, queries, word lists and decoder as far as an image passes through them, and nothing else."""

    name = "spatial"

    def __init__(self, run: SpatialRun):
        super().__init__(run, load_prior(run.prior).spatial)
        data, proxy = run.data, self.model.config.proxy
        self.train_dataset = image_dataset(data.train, data, proxy, run.train.seed)
        self.validation_dataset = still_dataset(data, proxy) if data.validation else None
        if run.warm_start:
            self.warm_start()
        self.play()


def still_dataset(data: DataConfig, proxy: ProxyConfig) -> ClipDataset:
    """For validation: images, or the middle frame of each video."""
    return ClipDataset(
        load_clips(data.validation, data.root), 1, (proxy.height, proxy.width), resize=data.resize,
        timeout=data.read_timeout,
    )  # fmt: skip
