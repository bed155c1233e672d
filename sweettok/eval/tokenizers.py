"""One view of any tokenizer for the evaluation: its ids, the bits they cost, their usage, and the decoded pixels.

Letters: B clips, T frames, H W pixels, L ids per clip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sweettok.data.preprocess import Preprocessing
from sweettok.hub import read_config
from sweettok.proxy.model import ProxyTokenizer
from sweettok.tokenizer.model import SweetTok

OVERSHOOT = 1.5  # decoders of the right range stay closer to zero than this
TOKENIZERS = {"SweetTok": SweetTok, "ProxyTokenizer": ProxyTokenizer}


@dataclass(frozen=True)
class RoundTrip:
    """A batch of clips through a tokenizer.

    Args:
        output: what `encode` returned. ids: the integers that `decode` takes.
        lists: ids local to each word list, by its name; sizes: the number of words of each.
        bits: of one clip.
        video: float (B, 3, T, H, W), clamped to [-0.5, 0.5]; clamped: (B,) the fraction of values that this changed.
    """

    output: Any
    ids: Tensor
    lists: dict[str, Tensor]
    sizes: dict[str, int]
    bits: float
    video: Tensor
    clamped: Tensor


def load_tokenizer(source: str | Path) -> torch.nn.Module:
    """The SweetTok or ProxyTokenizer of a folder, or of "user/name" on the hub; onto the CPU as `from_pretrained`."""
    name = read_config(source, *TOKENIZERS)["model"]
    return TOKENIZERS[name].from_pretrained(source)


def preprocessing_of(tokenizer: Any) -> Preprocessing:
    """How the videos that a tokenizer was trained on became clips."""
    return getattr(tokenizer.config, "preprocessing", None) or Preprocessing()


def round_trip(tokenizer: Any, video: Tensor) -> RoundTrip:
    """Encode and decode uint8 clips (B, 3, T, H, W).

    `tokenizer.encode` returns either an object with `ids` (B, L) and a `layout`, or a tensor of codes, of which there
    are `tokenizer.config.num_codes`. Raises ValueError when the decoded pixels have another shape, are not finite, or
    lie so far outside of [-0.5, 0.5] that another range must be meant.
    """
    output = tokenizer.encode(video)
    if isinstance(output, Tensor):
        ids, lists, sizes = output, {"code": output}, {"code": tokenizer.config.num_codes}
        bits = output[0].numel() * math.log2(sizes["code"])
    else:
        ids, layout = output.ids, output.layout
        local = layout.to_local(ids)
        lists = {segment.name: local[:, segment.places] for segment in layout.segments}
        sizes = {segment.name: segment.vocab_size for segment in layout.segments}
        bits = layout.bits
    decoded = tokenizer.decode(ids)
    if decoded.shape != video.shape or not decoded.isfinite().all():
        what = "values that are not finite" if decoded.shape == video.shape else f"shape {tuple(decoded.shape)}"
        raise ValueError(f"the tokenizer decodes clips of shape {tuple(video.shape)} to {what}")
    low, high = (value.item() for value in decoded.aminmax())
    if max(-low, high) > OVERSHOOT or (low >= 0 and high > 0.75):
        raise ValueError(f"the tokenizer decodes to values in [{low:.3g}, {high:.3g}], expected [-0.5, 0.5]")
    clamped = (decoded.abs() > 0.5).sum((1, 2, 3, 4)).cpu().double() / decoded[0].numel()
    return RoundTrip(output, ids, lists, sizes, bits, decoded.clamp(-0.5, 0.5), clamped)


class UsageCounter:
    """Counts how often each word of each list occurs; batches and counters add up exactly.

    sizes: number of words of each list, by name.
    """

    def __init__(self, sizes: Mapping[str, int]):
        self.counts = {name: torch.zeros(size, dtype=torch.int64) for name, size in sizes.items()}

    def update(self, ids: Mapping[str, Tensor]) -> None:
        """Add ids local to their list, in tensors of any shape. ValueError for an unknown list or id."""
        for name, values in ids.items():
            if name not in self.counts:
                raise ValueError(f"no word list {name!r}; there are {', '.join(self.counts)}")
            size = len(self.counts[name])
            values = values.detach().reshape(-1).cpu()
            if values.numel() and (values.min() < 0 or values.max() >= size):
                raise ValueError(f"{name} ids must be 0..{size - 1}, got {int(values.min())}..{int(values.max())}")
            self.counts[name] += torch.bincount(values, minlength=size)

    def summary(self) -> dict[str, dict[str, float | int]]:
        """Per list: words, ids counted, words used, their fraction, dead words, and perplexity (exp of the entropy)."""
        return {name: self._summary(counts) for name, counts in self.counts.items()}

    @staticmethod
    def _summary(counts: Tensor) -> dict[str, float | int]:
        words, used, total = len(counts), int((counts > 0).sum()), int(counts.sum())
        share = counts[counts > 0].double() / max(total, 1)
        return {
            "words": words,
            "ids": total,
            "used": used,
            "used_fraction": used / words,
            "dead": words - used,
            "perplexity": math.exp(-(share * share.log()).sum().item()) if total else 0.0,
        }


def merge_usage(counters: Sequence[UsageCounter | None]) -> UsageCounter | None:
    """The counts of all counters together; None where there is none."""
    found = [counter for counter in counters if counter is not None]
    for other in found[1:]:
        for name, counts in other.counts.items():
            found[0].counts[name] += counts
    return found[0] if found else None
