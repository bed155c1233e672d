"""Settings of the data sets."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from sweettok.config import choice, positive, whole
from sweettok.data.preprocess import Preprocessing
from sweettok.data.reader import SHORT
from sweettok.data.resize import RESIZES


@dataclass(frozen=True)
class DataConfig:
    """Clips: a list file (path TAB label), a CSV, or a folder of class folders."""

    train: str = MISSING  # clips to train on
    validation: str | None = None  # clips to validate on; null: no validation
    root: str | None = None  # folder that the paths of a list are relative to; null: that of the list
    stride: int = 1  # every stride-th frame of a video is taken, whatever its frame rate
    resize: str = "stretch"  # how frames get the model's size: "stretch" (release), "crop" or "pad"
    short: str = "black"  # frames after the end of a short video: "black" (release), "repeat", or "error"
    num_workers: int = 8  # processes that read clips, for each device
    read_timeout: float = 120.0  # seconds after which a clip counts as damaged; training then takes another one

    def __post_init__(self):
        positive(self, "data", "read_timeout")
        whole(self, "data", 1, "stride")
        whole(self, "data", 0, "num_workers")
        choice("data.resize", self.resize, RESIZES)
        choice("data.short", self.short, SHORT)

    @property
    def preprocessing(self) -> Preprocessing:
        """How validation clips are made, which trained models save as their default; training clips start anywhere."""
        return Preprocessing(self.resize, "center", self.stride, self.short)


@dataclass(frozen=True)
class TokenDataConfig:
    """Folders of token shards, as `sweettok tokenize` writes them."""

    train: str = MISSING  # tokens to train on
    validation: str | None = None  # tokens to validate on; null: no validation
    num_workers: int = 2  # processes that read tokens, for each device

    def __post_init__(self):
        whole(self, "data", 0, "num_workers")


@dataclass(frozen=True)
class AnnotatedDataConfig:
    """Clips with captions, as `sweettok data scenes` writes them: a list with captions.jsonl beside it.

    questions.jsonl and scenes.jsonl are used where they are. How frames are resized is the tokenizer's setting.
    """

    train: str = MISSING  # clips to train on
    validation: str | None = None  # clips to validate on; null: no validation
    root: str | None = None  # folder of the annotations, to which paths of a list are relative; null: that of the list
    # Folder of the features of the frozen encoder, which runs may share; null: `features` in the output folder.
    features: str | None = None
    keep: bool = False  # keep the pixels of all clips in memory, in each process that reads clips
    num_workers: int = 8  # processes that read clips, for each device
    read_timeout: float = 120.0  # seconds after which a clip counts as damaged; training then takes another one

    def __post_init__(self):
        positive(self, "data", "read_timeout")
        whole(self, "data", 0, "num_workers")
