"""Results of VTok and of other tokenizers that feed a language model.

Letters: B clips, L tokens, P patches of a residual, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self

KEY, MOTION = 0, 1  # values of `kinds`


class _Timed:
    """Methods of both classes below."""

    times: Tensor
    kinds: Tensor
    key_frame: Tensor

    def __len__(self) -> int:
        return len(self.times)

    def to(self, device: torch.device | str) -> Self:
        """A copy on another device."""
        return _changed(self, {name: tensor.to(device) for name, tensor in _tensors(self).items()})

    @classmethod
    def stack(cls, clips: Sequence[Self]) -> Self:
        """Clips with the same kinds of tokens -> one batch. Raises ValueError for others."""
        for clip in clips:
            if not clip.kinds.equal(clips[0].kinds):
                raise ValueError(
                    "clips of a batch must have as many tokens, with key frames at the same places; got "
                    f"{_count(clip)} beside {_count(clips[0])}: encode them one by one"
                )
        names = _tensors(clips[0]).keys() - {"kinds"}
        return _changed(clips[0], {name: torch.cat([getattr(clip, name) for clip in clips]) for name in names})

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Consecutive parts of the same clips, as `VTok.stream` yields them -> all of their tokens."""
        names = _tensors(parts[0]).keys() - {"key_frame"}
        along = {name: 0 if name == "kinds" else 1 for name in names}
        return _changed(
            parts[0], {name: torch.cat([getattr(p, name) for p in parts], dim) for name, dim in along.items()}
        )


def _tensors(batch: Any) -> dict[str, Tensor]:
    return {field.name: getattr(batch, field.name) for field in fields(batch)}


def _changed(batch: Any, tensors: dict[str, Tensor]) -> Any:
    return replace(batch, **tensors)


def _count(clip: _Timed) -> str:
    return f"{int((clip.kinds == KEY).sum())} key-frame and {int((clip.kinds == MOTION).sum())} motion tokens"


@dataclass(frozen=True)
class VisualTokens(_Timed):
    """Tokens of B clips: those of the key frame in row-major order, then one per other moment in time order.

    With segments, this is repeated for each of them.
    """

    values: Tensor  # (B, L, C) float32
    times: Tensor  # (B, L) float32, seconds; tokens of a key frame have its time
    kinds: Tensor  # (L,) int64: 0 key frame, 1 motion
    key_frame: Tensor  # (B,) int64, index into the sampled frames; with segments that of the first key frame


@dataclass(frozen=True)
class FrameFeatures(_Timed):
    """What the frozen encoder gives for B clips; `VTok.project` turns it into VisualTokens with equal times."""

    key: Tensor  # (B, tokens of kind 0, C) float32: pooled features of the key frame
    residuals: Tensor  # (B, tokens of kind 1, P, C) float32: differences to the key frame, averaged to P patches
    times: Tensor
    kinds: Tensor
    key_frame: Tensor
