"""Settings of the data sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional  # noqa: UP035  (OmegaConf reads these annotations)

from omegaconf import MISSING

from sweettok.config import choice, positive
from sweettok.data.reader import SHORT
from sweettok.data.resize import RESIZES


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
        choice("data.resize", self.resize, RESIZES)
        choice("data.short", self.short, SHORT)


@dataclass(frozen=True)
class TokenDataConfig:
    """Folders of token shards."""

    train: str = MISSING
    validation: Optional[str] = None  # noqa: UP045
    num_workers: int = 2
