"""Sampling of words from logits: guidance, filters and one random stream for each sample.

Letters: B samples, V words that may be drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from sweettok.generator.config import SamplingConfig
from sweettok.seeds import sample_generator
from sweettok.segments import Segment


def choose(logits: Tensor, chances: Tensor, how: SamplingConfig) -> Tensor:
    """(B, V) logits and (B,) chances as in `draw` -> (B,) words: drawn, or at temperature 0 the likeliest."""
    if how.temperature == 0:
        return logits.argmax(-1)
    return draw(filter_logits(logits / how.temperature, how.top_k, how.top_p), chances)


def drawable(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(B, V) logits -> the logits with zeros in rows that no word can be drawn from, and which rows (B,) are good.

    Such rows have NaN, infinity or -infinity alone. `check_finite` reports them later.
    """
    finite = logits.amax(-1).isfinite()
    return torch.where(finite[:, None], logits, 0.0), finite


def check_finite(finite: Tensor, segment: Segment, indices: Sequence[int]) -> None:
    """Raise FloatingPointError if logits of a segment's positions were not finite, naming the first.

    Synchronizes with the device, so it is called once per segment.

    Args:
        finite: (B, n), for each sample and position, as returned by `drawable`.
        indices: of the samples.
    """
    wrong = (~finite.cpu()).nonzero()
    if len(wrong):
        row, position = wrong[wrong[:, 1].argmin()].tolist()
        raise FloatingPointError(
            f"the logits of sample {indices[row]} at position {segment.start + position} ({segment.name} {position}) "
            "are not finite, so no word can be drawn: look for NaN in the weights, or use bfloat16 or float32 where "
            "float16 overflows"
        )


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance; the release's t is scale - 1, in (1 + t) conditional - t unconditional."""
    return unconditional + scale * (conditional - unconditional)


def scale_at(scale: float, schedule: str, word: int, num_words: int) -> float:
    """Guidance scale at a zero-based word: `constant`, or `linear` from 1 at the first to `scale` at the last."""
    if schedule == "constant" or num_words == 1:
        return scale
    return 1.0 + (scale - 1.0) * word / (num_words - 1)


def filter_logits(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """(B, V) logits -> a copy with -inf for words that may not be drawn.

    Keeps the `top_k` largest with all ties of the last; of these, the smallest set of largest probabilities whose mass
    exceeds `top_p`, with ties and at least one word.
    """
    if (top_k is None or top_k >= logits.shape[-1]) and (top_p is None or top_p == 1):
        return logits
    ranked = descending(logits)
    keep = torch.ones_like(ranked, dtype=torch.bool)
    if top_k is not None:
        last = min(top_k, ranked.shape[-1]) - 1
        keep = ranked >= ranked[:, last : last + 1]
    if top_p is not None and top_p < 1:
        mass = ranked.masked_fill(~keep, -torch.inf).softmax(-1)
        keep &= mass.cumsum(-1) - mass <= top_p
    smallest = ranked.gather(1, keep.sum(-1, keepdim=True) - 1)
    return logits.masked_fill(logits < smallest, -torch.inf)


def descending(logits: Tensor) -> Tensor:
    """The values of each row, largest first; on CPUs by NumPy, whose sort takes a tenth to a fifth of the time."""
    if logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.sort(logits.detach().numpy(), axis=-1)).flip(-1)
    return logits.sort(dim=-1, descending=True).values


def draw(logits: Tensor, chances: Tensor) -> Tensor:
    """(B, V) logits and (B,) chances in (0, 1], float64 -> (B,) words, by inverting the distribution function.

    Words are not sorted by probability, so that a rounding error in the logits changes the intervals by as little.
    """
    reached = logits.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(reached, chances[:, None] * reached[:, -1:]).squeeze(1)


def random_streams(seed: int, indices: Iterable[int], length: int) -> Tensor:
    """(B, length) float64 chances in (0, 1]: a row for each sample, a function of (seed, index) alone."""

    def stream(index: int) -> Tensor:
        return 1 - torch.rand(length, generator=sample_generator(seed, index), dtype=torch.float64)

    return torch.stack([stream(index) for index in indices])
