"""Flow matching (rectified flow): noise levels, the loss of a velocity, and what all video decoders share.

A clip z and normal noise e are mixed at level s in (0, 1]: x = (1 - s) z + s e, whose velocity dx/ds is e - z.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

# Of a batch, or one for each clip, whose draws then do not depend on the batch. None: torch's own.
Generators = torch.Generator | Sequence[torch.Generator] | None


class VideoDecoder(Protocol):
    """What turns the states of a language model into a video."""

    state_dim: int  # width of the states
    state_layer: int  # which hidden state of the language model: -1 is its output, -3 the third from last

    def loss(
        self, video: Tensor, states: Tensor, mask: Tensor | None = None, generator: Generators = None
    ) -> Tensor: ...

    def sample(
        self,
        states: Tensor,
        frames: int,
        size: int | tuple[int, int],
        *,
        mask: Tensor | None = None,
        negative: Tensor | None = None,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        steps: int = 50,
        cfg_scale: float = 1.0,
    ) -> Tensor: ...


def shifted(levels: Tensor, shift: float) -> Tensor:
    """Noise levels in [0, 1] moved towards 1 (more noise) by a shift above 1, as schedulers of diffusers do."""
    return shift * levels / (1 + (shift - 1) * levels)


def draw(function: Callable[..., Tensor], shape: Sequence[int], generator: Generators, device: Any = None) -> Tensor:
    """torch.rand or torch.randn of a shape (B, ...), on the generator's device, without one on `device`."""
    if generator is None or isinstance(generator, torch.Generator):
        return function(tuple(shape), generator=generator, device=device if generator is None else generator.device)
    if len(generator) != shape[0]:
        raise ValueError(f"there must be a generator for each clip; got {len(generator)} for {shape[0]}")
    return torch.stack([function(tuple(shape[1:]), generator=one, device=one.device) for one in generator])


def flow_loss(
    velocity: Callable[[Tensor, Tensor], Tensor],
    clean: Tensor,
    shift: float = 1.0,
    generator: Generators = None,
    least: float = 0.0,
    weight: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Mean squared error of `velocity(noisy, levels)` against noise - clean, of each clip: (B,) in float32.

    Args:
        velocity: of (B, ...) noisy and (B,) levels, which are on the CPU unless the generator is not.
        clean: (B, ...) clips or latents.
        shift: of the levels, which are uniform before it.
        generator: for levels and noise. Default: torch's own, with the noise drawn on the device of `clean`.
        least: smallest level before the shift.
        weight: of the error, given the levels (B,); None: 1.
    """
    uniform = 1 - draw(torch.rand, (len(clean),), generator)
    levels = shifted(least + (1 - least) * uniform, shift)
    noise = draw(torch.randn, clean.shape, generator, clean.device).to(clean.device)
    share = levels.to(clean.device).view(-1, *[1] * (clean.ndim - 1))
    predicted = velocity((1 - share) * clean + share * noise, levels)
    error = (predicted.float() - (noise - clean)).square().flatten(1).mean(1)
    return error if weight is None else weight(levels).to(error.device) * error


def check_states(states: Tensor, mask: Tensor | None, width: int) -> None:
    """ValueError unless states are (B, L, width) and the mask is (B, L) or None."""
    if states.ndim != 3 or states.shape[2] != width or states.shape[1] == 0:
        raise ValueError(f"states must have shape (batch, tokens, {width}), got {tuple(states.shape)}")
    if mask is not None and mask.shape != states.shape[:2]:
        raise ValueError(
            f"the mask of states {tuple(states.shape)} must have shape (batch, tokens); got {tuple(mask.shape)}"
        )


def check_batch(video: Tensor, states: Tensor) -> None:
    """ValueError unless there are states for each clip."""
    if len(video) != len(states):
        raise ValueError(f"{len(states)} rows of states for {len(video)} clips")


def check_indices(indices: Sequence[int] | None, count: int) -> Sequence[int]:
    """`indices` of samples, 0, 1, 2, ... by default."""
    if indices is not None and len(indices) != count:
        raise ValueError(f"{len(indices)} indices for {count} samples")
    return range(count) if indices is None else indices


def check_size(frames: int, size: int | tuple[int, int], period: int, multiple: int) -> tuple[int, int]:
    """(height, width) of `size`; ValueError unless frames = period * k + 1 and both edges divide by `multiple`."""
    height, width = (size, size) if isinstance(size, int) else size
    if frames < 1 or (frames - 1) % period:
        near = max(0, round((frames - 1) / period)) * period + 1
        raise ValueError(f"this decoder makes {period}k + 1 frames, got {frames}: the nearest is {near}")
    if min(height, width) < 1 or height % multiple or width % multiple:
        near = " x ".join(str(max(1, round(edge / multiple)) * multiple) for edge in (height, width))
        raise ValueError(
            f"height and width must be multiples of {multiple}, got {height} x {width}: the nearest is {near}"
        )
    return height, width
