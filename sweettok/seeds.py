"""Random numbers of samples: a stream for each (seed, index), whatever the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def sample_generator(seed: int, index: int) -> torch.Generator:
    """A generator on the CPU for sample `index` of `seed`."""
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def sample_noise(shape: Sequence[int], seed: int, indices: Sequence[int]) -> Tensor:
    """(len(indices), *shape) float32 normal noise on the CPU: a row for each sample, a function of (seed, index)."""
    return torch.stack([torch.randn(*shape, generator=sample_generator(seed, index)) for index in indices])
