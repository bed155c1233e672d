"""Graph convolution over a fixed undirected graph."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.library.custom_op("sweettok::symmetric_product", mutates_args=())
def symmetric_product(indices: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """Product of a symmetric sparse matrix A (V, V) and x (V, C).

    A custom operation because graphs of torch.compile and torch.export cannot hold sparse tensors, and because the
    gradient of torch.sparse.mm sorts the transposed matrix at every step, which a symmetric one does not need.

    Args:
        indices: (2, E) int64 rows and columns of A's entries, sorted and without repetition.
        values: (E,) the entries.
    """
    size = len(x), len(x)
    matrix = torch.sparse_coo_tensor(indices, values, size, device=x.device, is_coalesced=True, check_invariants=False)
    return torch.sparse.mm(matrix, x)


@symmetric_product.register_fake
def _(indices: Tensor, values: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
    return None, None, symmetric_product(*ctx.saved_tensors, gradient)


symmetric_product.register_autograd(_backward, setup_context=_save)


class GraphConv(nn.Module):
    """y = A x W^T + b with the normalised adjacency A (Kipf and Welling)."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.lin = nn.Linear(in_dim, out_dim, bias=False)
        nn.init.xavier_uniform_(self.lin.weight)
        self.bias = nn.Parameter(torch.zeros(out_dim))

    def forward(self, x: Tensor, indices: Tensor, values: Tensor) -> Tensor:
        """x (V, in_dim) and A as in `symmetric_product` -> (V, out_dim), always float32."""
        return symmetric_product(indices, values, F.linear(x.float(), self.lin.weight.float())) + self.bias.float()
