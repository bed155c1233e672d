"""Code table of the proxy tokenizer.

Letters: K codes, c width of a code, N features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweettok.distributed import add_up, gather_rows
from sweettok.layers.lookup import nearest


class CodeTable(nn.Module):
    """K code vectors, each a moving average of the features quantized to it."""

    embeddings: Tensor  # (K, c)
    counts: Tensor  # (K,)
    sums: Tensor  # (K, c)

    def __init__(self, num_codes: int, code_dim: int):
        super().__init__()
        # Unit vectors, as the features are, with a count of one each.
        embeddings = F.normalize(torch.randn(num_codes, code_dim), dim=-1)
        self.register_buffer("embeddings", embeddings)
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("sums", embeddings.clone())

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (...) -> vectors (..., c)."""
        return F.embedding(codes, self.embeddings)

    def nearest(self, features: Tensor) -> Tensor:
        """Features (..., c) -> nearest codes (...) int64."""
        return nearest(features, self.embeddings).squeeze(-1)

    @torch.no_grad()
    def update(
        self, features: list[Tensor], codes: Tensor, decay: float, dead_threshold: float, generator: torch.Generator
    ) -> Tensor:
        """Update the averages with the features of all processes, without synchronizing with the device.

        A code whose moving count is below `dead_threshold` times the mean is replaced by a random feature of this step
        and gets the mean count.

        Args:
            features: groups of features (N, c).
            codes: codes of all groups, concatenated.
            generator: on the CPU, in the same state on every process.

        Returns:
            The number of replaced codes, as a scalar tensor.
        """
        features, K = [rows.float() for rows in features], len(self.embeddings)
        # bincount would synchronize with the device.
        counts = torch.zeros(K, device=codes.device).index_add_(0, codes, torch.ones_like(codes, dtype=torch.float32))
        sums = torch.zeros_like(self.sums).index_add_(0, codes, torch.cat(features))
        add_up(counts)
        add_up(sums)
        self.counts.lerp_(counts, 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        # Laplace smoothing, against division by zero.
        total = self.counts.sum()
        smoothed = (self.counts + 1e-5) / (total + K * 1e-5) * total
        self.embeddings.copy_(self.sums / smoothed[:, None])
        dead = self.counts < dead_threshold * total / K
        if dead_threshold > 0:
            fresh = draw_rows(torch.cat([gather_rows(rows) for rows in features]), K, generator)
            self.embeddings.copy_(torch.where(dead[:, None], fresh, self.embeddings))
            self.counts.copy_(torch.where(dead, total / K, self.counts))
            self.sums.copy_(torch.where(dead[:, None], fresh * total / K, self.sums))
        return dead.sum()

    def perplexity(self) -> Tensor:
        """Exponential of the entropy of the moving counts, as a scalar tensor."""
        share = self.counts / self.counts.sum().clamp_min(1e-8)
        return torch.special.entr(share).sum().exp()


def draw_rows(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` random rows: distinct ones, or, if there are too few, repeated ones with a little noise."""
    device = rows.device
    if device != generator.device:  # a copy from the CPU would synchronize
        generator = torch.Generator(device).manual_seed(generator.initial_seed())
    repeats = -(-count // len(rows))
    order = [torch.randperm(len(rows), generator=generator, device=device) for _ in range(repeats)]
    drawn = rows[torch.cat(order)[:count]]
    if repeats == 1:
        return drawn
    return drawn + 1e-3 * torch.randn(drawn.shape, generator=generator, device=device)
