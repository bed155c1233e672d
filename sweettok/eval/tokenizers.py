"""Common interface of tokenizers for the evaluation: ids, their bits and usage, and decoded pixels.

Letters: B clips, T frames, H W pixels, L ids per clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d

from sweettok.data.lists import ClipList
from sweettok.data.preprocess import Preprocessing
from sweettok.hub import read_config
from sweettok.proxy.model import ProxyTokenizer
from sweettok.tokenizer.model import SweetTok

SMALL = 16  # height and width at which the pixels of clips are compared
OVERSHOOT = 1.5  # larger decoded values show another range
TOKENIZERS = {"SweetTok": SweetTok, "ProxyTokenizer": ProxyTokenizer}


@dataclass(frozen=True)
class RoundTrip:
    """A batch of clips, encoded and decoded.

    Args:
        output: result of `encode`.
        ids: input of `decode`.
        lists: ids within each word list, by name; sizes: number of words of each list.
        bits: bits of the ids of one clip.
        video: float (B, 3, T, H, W), clamped to [-0.5, 0.5]; clamped: (B,) fraction of values changed by this.
    """

    output: Any
    ids: Tensor
    lists: dict[str, Tensor]
    sizes: dict[str, int]
    bits: float
    video: Tensor
    clamped: Tensor


def load_tokenizer(source: str | Path) -> torch.nn.Module:
    """Load the SweetTok or ProxyTokenizer of a folder or a hub repository onto the CPU."""
    name = read_config(source, *TOKENIZERS)["model"]
    return TOKENIZERS[name].from_pretrained(source)


def preprocessing_of(tokenizer: Any) -> Preprocessing:
    """The preprocessing of a tokenizer's configuration, or the default."""
    return getattr(tokenizer.config, "preprocessing", None) or Preprocessing()


def clip_frames(tokenizer: Any) -> int:
    """Frames of the clip that a tokenizer is configured for."""
    return getattr(tokenizer, "clip_frames", None) or tokenizer.config.num_frames


def clip_batches(tokenizer: Any, clips: ClipList, batch_size: int) -> Iterator[tuple[int, Tensor]]:
    """Number of the first clip, and uint8 clips (B, 3, T, H, W), as the tokenizer reads them."""
    config, steps = tokenizer.config, preprocessing_of(tokenizer)
    size = config.height, config.width
    for start in range(0, len(clips), batch_size):
        paths = clips.paths[start : start + batch_size]
        yield start, torch.stack([steps.read(path, clip_frames(tokenizer), size) for path in paths])


def small_pixels(videos: Tensor) -> Tensor:
    """uint8 (B, 3, T, H, W) -> (B, 3 * T * SMALL * SMALL) grey levels."""
    return adaptive_avg_pool3d(videos.float(), (videos.shape[2], SMALL, SMALL)).flatten(1)


def round_trip(tokenizer: Any, video: Tensor) -> RoundTrip:
    """Encode and decode uint8 clips (B, 3, T, H, W).

    `tokenizer.encode` returns either an object with `ids` (B, L) and a `layout`, or a tensor of codes below
    `tokenizer.config.num_codes`. Raises ValueError if decoded pixels have another shape, are not finite, or seem to
    have another range than [-0.5, 0.5].
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
        result = "values that are not finite" if decoded.shape == video.shape else f"shape {tuple(decoded.shape)}"
        raise ValueError(f"the tokenizer decodes clips of shape {tuple(video.shape)} to {result}")
    low, high = (value.item() for value in decoded.aminmax())
    if max(-low, high) > OVERSHOOT or (low >= 0 and high > 0.75):
        raise ValueError(f"the tokenizer decodes to values in [{low:.3g}, {high:.3g}], expected [-0.5, 0.5]")
    clamped = (decoded.abs() > 0.5).sum((1, 2, 3, 4)).cpu().double() / decoded[0].numel()
    return RoundTrip(output, ids, lists, sizes, bits, decoded.clamp(-0.5, 0.5), clamped)


class UsageCounter:
    """Counts the occurrences of each word. sizes: {name of a word list: number of words}."""

    def __init__(self, sizes: Mapping[str, int]):
        self.counts = {name: torch.zeros(size, dtype=torch.int64) for name, size in sizes.items()}

    def update(self, ids: Mapping[str, Tensor]) -> None:
        """Count {name of a word list: ids within this list, of any shape}. ValueError for an unknown list or id."""
        for name, values in ids.items():
            if name not in self.counts:
                raise ValueError(f"no word list {name!r}; there are {', '.join(self.counts)}")
            size = len(self.counts[name])
            values = values.detach().reshape(-1).cpu()
            if values.numel() and (values.min() < 0 or values.max() >= size):
                raise ValueError(f"{name} ids must be 0..{size - 1}, got {int(values.min())}..{int(values.max())}")
            self.counts[name] += torch.bincount(values, minlength=size)

    def summary(self) -> dict[str, dict[str, float | int]]:
        """Per list: words, counted ids, used words and their fraction, dead words, perplexity (exp of the entropy)."""
        result = {}
        for name, counts in self.counts.items():
            words, used, total = len(counts), int((counts > 0).sum()), int(counts.sum())
            share = counts[counts > 0].double() / max(total, 1)
            perplexity = math.exp(-(share * share.log()).sum().item()) if total else 0.0
            numbers = {"words": words, "ids": total, "used": used, "used_fraction": used / words, "dead": words - used}
            result[name] = {**numbers, "perplexity": perplexity}
        return result


def merge_usage(counters: Sequence[UsageCounter | None]) -> UsageCounter | None:
    """The sum of all counters that are not None; None if there are none."""
    found = [counter for counter in counters if counter is not None]
    for other in found[1:]:
        for name, counts in other.counts.items():
            found[0].counts[name] += counts
    return found[0] if found else None
