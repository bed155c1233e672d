"""Lookup of latent vectors in a language codebook; one class, used for the spatial and for the temporal branch.

Letters: B batch, N queries, C width of a code. A latent has the width of one code for each list that is searched: a
modifier half and a head half, or one code where the words of both lists are searched together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sweettok.layers.lookup import nearest
from sweettok.layers.precision import without_autocast
from sweettok.tokenizer.codebook import LanguageCodebook
from sweettok.tokenizer.layout import LOOKUPS


class Quantized(NamedTuple):
    """Result of a lookup: `output` has the straight-through gradient, the halves are for the loss."""

    output: Tensor  # (B, N, latent), exactly the looked-up codes in value
    halves: tuple[tuple[Tensor, Tensor], ...]  # (z, code) of the modifiers and of the heads; of the latent as a whole
    ids: tuple[Tensor, ...]  # (B, N * words per query) local to each list, query after query, nearest first
    tables: tuple[Tensor, ...]  # (words, C), the codes that each half was compared with


class LanguageQuantizer(nn.Module):
    """Modifier half: mean of the nearest words, head half: the nearest word (release); or the nearest of all (union).

    A `shared` codebook is a submodule of another quantizer, where its weights are found and saved.

    ValueError for an unknown lookup and for fewer modifiers in the prior than a query needs.
    """

    codebook: LanguageCodebook

    def __init__(
        self,
        codebook: LanguageCodebook,
        modifiers_per_query: int,
        lookup: str = "modifiers_and_head",
        shared: bool = False,
    ):
        super().__init__()
        if lookup not in LOOKUPS:
            raise ValueError(f"lookup must be one of {', '.join(LOOKUPS)}; got {lookup!r}")
        if shared:
            object.__setattr__(self, "codebook", codebook)  # not registered, so that weights are saved once
        else:
            self.codebook = codebook
        modifiers, heads = codebook.graph_words
        if lookup == "union":
            self.word_lists, self.words_per_query = (modifiers + heads,), (1,)
        else:
            self.word_lists, self.words_per_query = (modifiers, heads), (modifiers_per_query, 1)
        self.list_sizes = tuple(len(words) for words in self.word_lists)
        if self.list_sizes[0] < self.words_per_query[0]:
            raise ValueError(
                f"{modifiers_per_query} modifiers per query need at least as many words, "
                f"but the prior lists {self.list_sizes[0]}"
            )

    def forward(self, z: Tensor) -> Quantized:
        """z (B, N, latent) -> nearest words by squared distance, in float32 whatever the autocast."""
        with without_autocast(z.device):
            tables = self.tables()
            parts = z.float().chunk(len(tables), dim=-1)
            searched = zip(parts, tables, self.words_per_query, strict=True)
            words = [nearest(part, table, k) for part, table, k in searched]
            codes = [table[chosen].mean(2) for table, chosen in zip(tables, words, strict=True)]
            z_all, code = torch.cat(parts, dim=-1), torch.cat(codes, dim=-1)
            # z - z is exactly zero, so the value is the code, bit for bit, and the gradient goes to z.
            output = code.detach() + (z_all - z_all.detach())
        ids = tuple(chosen.flatten(1) for chosen in words)
        return Quantized(output, tuple(zip(parts, codes, strict=True)), ids, tables)

    def lookup(self, *ids: Tensor) -> Tensor:
        """Local ids (B, N * words per query) of each list -> codes (B, N, latent): the inverse of `forward`."""
        searched = zip(self.tables(), ids, self.words_per_query, strict=True)
        return torch.cat([table[words.unflatten(1, (-1, k))].mean(2) for table, words, k in searched], dim=-1)

    def tables(self) -> tuple[Tensor, ...]:
        """Codes of each list that is searched."""
        return self.codebook().split(self.list_sizes)
