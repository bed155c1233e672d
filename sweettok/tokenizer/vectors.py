"""Word vectors of SweetTok, for language models and probes."""

from __future__ import annotations

import torch
from torch import Tensor

from sweettok.tokenizer.base import SweetTokBase
from sweettok.tokenizer.output import EmbeddingMatrix


class VectorMethods(SweetTokBase):
    """The projected vectors of all words, and of the words of a clip."""

    @torch.no_grad()
    def embedding_matrix(self, offset: int = 0) -> EmbeddingMatrix:
        """All words with their projected vectors (V, C), float32, in the order of global ids, under either lookup.

        To append them to the embedding table (rows, width) of a language model:

            words = tok.embedding_matrix(offset=len(table))
            table = torch.cat((table, project(words.vectors)))      # project: a layer of yours, C -> width
            tokens = words.to_table(out.ids)                        # and back: words.from_table(tokens)

        In training mode dropout draws the vectors anew at every call. ValueError for a negative offset.
        """
        if offset < 0:
            raise ValueError(f"offset must be at least 0, the rows of the table that come first; got {offset}")
        names = tuple(word for words in self.vocabulary for word in words)
        return EmbeddingMatrix(names, torch.cat([q.codebook() for q in self.quantizers.values()]), offset)

    def vectors(self, ids: Tensor) -> Tensor:
        """Global ids (B, L) -> the projected vector of each (B, L, C), float32, in the order of the ids.

        The latent of a query consists of them: the mean of its modifiers' vectors and its head word's, or under lookup
        union that of its one word. Raises ValueError for ids that are not in their segment's range.
        """
        return self.embedding_matrix().vectors[self.describe(ids).ids.to(self.device)]
