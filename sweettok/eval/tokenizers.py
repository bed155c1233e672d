"""One view of any tokenizer for the evaluation: ids, what they count as, and the pixels that come back.

Letters: B clips, T frames, H W pixels, L ids per clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sweettok.hub import CONFIG, find
from sweettok.pretrained import read_about
from sweettok.proxy.model import ProxyTokenizer
from sweettok.tokenizer.model import SweetTok

OVERSHOOT = 1.5  # farther from zero than a decoder of the right range goes
TOKENIZERS = {"SweetTok": SweetTok, "ProxyTokenizer": ProxyTokenizer}


@dataclass(frozen=True)
class RoundTrip:
    """A batch of clips through a tokenizer.

    output: what `encode` gave. ids: the integers to hand to `decode`. lists: ids local to each word list, by name;
    sizes: the words in each. bits: of one clip. video: float (B, 3, T, H, W), clamped to [-0.5, 0.5]; clamped: how
    many of its values that has changed.
    """

    output: Any
    ids: Tensor
    lists: dict[str, Tensor]
    sizes: dict[str, int]
    bits: float
    video: Tensor
    clamped: int


def load_tokenizer(source: str | Path) -> torch.nn.Module:
    """The SweetTok or ProxyTokenizer of a folder, or of "user/name" on the hub; onto the CPU as `from_pretrained`."""
    name = read_about(find(source).fetch(CONFIG), source, *TOKENIZERS)["model"]
    return TOKENIZERS[name].from_pretrained(source)


def round_trip(tokenizer: Any, video: Tensor) -> RoundTrip:
    """Encode and decode uint8 clips (B, 3, T, H, W).

    `tokenizer.encode` gives either an object with `ids` (B, L) and a `layout`, or a tensor of codes out of
    `tokenizer.config.num_codes`. Raises ValueError when the pixels that come back have another shape, are not finite,
    or lie so far outside of [-0.5, 0.5] that another range must be meant.
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
    clamped = (decoded.abs() > 0.5).sum().item()
    return RoundTrip(output, ids, lists, sizes, bits, decoded.clamp(-0.5, 0.5), clamped)
