"""How much of each word list a tokenizer uses."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class UsageCounter:
    """Counts ids per word list; many batches and many counters add up exactly.

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

    def merge(self, other: UsageCounter) -> UsageCounter:
        """The counts of both together; neither is changed."""
        both = UsageCounter({name: len(counts) for name, counts in self.counts.items()})
        for name in both.counts:
            both.counts[name] = self.counts[name] + other.counts[name]
        return both

    def dead(self, name: str) -> Tensor:
        """Local ids of the words of a list that never occurred."""
        return (self.counts[name] == 0).nonzero().flatten()

    def summary(self) -> dict[str, dict[str, float | int]]:
        """Per list: words, ids counted, words used, their fraction, dead words and perplexity.

        Perplexity is exp of the entropy of the ids: the number of words, were all used equally, that would say as much.
        """
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
