"""Lookup of latent vectors in a language codebook; one class, used for the spatial and for the temporal branch.

Letters: B batch, N queries, C width of a code; a latent holds 2C channels: modifier half, head half.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sweettok.models.codebook import LanguageCodebook


class Quantized(NamedTuple):
    """What a lookup gives: `output` has the straight-through gradient, the halves are for the loss."""

    output: Tensor  # (B, N, 2C), exactly the looked-up codes in value
    halves: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]  # (z, code) of the modifiers and of the heads
    modifiers: Tensor  # (B, N * modifiers_per_query) local ids, query after query, nearest first
    heads: Tensor  # (B, N) local ids


class LanguageQuantizer(nn.Module):
    """Modifier half: mean of the nearest words; head half: the nearest word (release)."""

    def __init__(self, codebook: LanguageCodebook, modifiers_per_query: int):
        super().__init__()
        if codebook.num_modifiers < modifiers_per_query:
            raise ValueError(
                f"{modifiers_per_query} modifiers per query need at least as many words, "
                f"but the prior lists {codebook.num_modifiers}"
            )
        self.codebook = codebook
        self.modifiers_per_query = modifiers_per_query

    def tables(self) -> tuple[Tensor, Tensor]:
        """Codes of the modifiers and of the heads."""
        return self.codebook().split((self.codebook.num_modifiers, self.codebook.num_heads))

    def forward(self, z: Tensor) -> Quantized:
        """z (B, N, 2C) -> nearest words by squared distance, in float32 whatever the autocast."""
        with torch.autocast(z.device.type, enabled=False):
            z_modifiers, z_heads = z.float().chunk(2, dim=-1)
            modifier_table, head_table = self.tables()
            modifiers = nearest(z_modifiers, modifier_table, self.modifiers_per_query)
            heads = nearest(z_heads, head_table, 1)
            codes = modifier_table[modifiers].mean(2), head_table[heads.squeeze(2)]
            z_all, code = torch.cat((z_modifiers, z_heads), dim=-1), torch.cat(codes, dim=-1)
            # z - z is exactly zero, so the value is the code, bit for bit, and the gradient goes to z.
            output = code.detach() + (z_all - z_all.detach())
        halves = ((z_modifiers, codes[0]), (z_heads, codes[1]))
        return Quantized(output, halves, modifiers.flatten(1), heads.squeeze(2))

    def lookup(self, modifiers: Tensor, heads: Tensor) -> Tensor:
        """Local ids (B, N * modifiers_per_query) and (B, N) -> codes (B, N, 2C): the inverse of `forward`."""
        modifier_table, head_table = self.tables()
        modifiers = modifiers.unflatten(1, (-1, self.modifiers_per_query))
        return torch.cat((modifier_table[modifiers].mean(2), head_table[heads]), dim=-1)


@torch.no_grad()
def nearest(z: Tensor, table: Tensor, k: int) -> Tensor:
    """z (B, N, C), table (V, C) -> (B, N, k) rows of the table by rising squared distance."""
    # |z|^2 is the same for every word and is left out.
    scores = z.flatten(0, 1) @ table.T - 0.5 * table.square().sum(1)
    best = scores.argmax(1, keepdim=True) if k == 1 else scores.topk(k, dim=1).indices
    return best.unflatten(0, z.shape[:2])
