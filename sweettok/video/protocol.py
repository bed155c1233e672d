"""What this package needs of a tokenizer."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from sweettok.segments import SegmentLayout


class ClipTokenizer(Protocol):
    """A tokenizer of clips (B, 3, T, H, W), to inherit from.

    Attributes:
        config: has `num_frames`, `height`, `width` of a clip, and `preprocessing`, how it is made from a file.
        long_class: class of the ids of its long videos, see `LongVideo`.
    """

    config: Any
    long_class: Any

    @property
    def device(self) -> torch.device:
        """Where the weights are; inputs are moved there."""
        ...

    @property
    def clip_frames(self) -> int:
        """Frames of the clips that it was trained on; 1 for a tokenizer of images."""
        ...

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise ValueError, naming what would fit, for clips of another shape."""

    def clip_layout(self, num_frames: int) -> SegmentLayout:
        """Layout of the ids of a clip of so many frames."""
        ...

    def ids_hash(self) -> str:
        """SHA-256 of all weights and settings that ids depend on."""
        ...

    def encode(self, source: Tensor) -> Any:
        """uint8 or float clips (B, 3, T, H, W) -> a TokenBatch."""

    def decode(self, ids: Tensor) -> Tensor:
        """Ids (B, L) -> float32 clips (B, 3, T, H, W) in [-0.5, 0.5]."""
        ...

    def describe(self, ids: Tensor) -> Any:
        """Ids (B, L) -> what `encode` returns with these ids."""
