"""Motion-enhanced language codebook (MLC): a graph of words becomes a table of code vectors.

Letters: V words (modifiers first), d width of the word vectors, C width of the codes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweettok.priors.graph import WordGraph, normalised_adjacency


class GraphConv(nn.Module):
    """y = A x W^T + b with the normalised adjacency A (Kipf and Welling)."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.lin = nn.Linear(in_dim, out_dim, bias=False)
        nn.init.xavier_uniform_(self.lin.weight)
        self.bias = nn.Parameter(torch.zeros(out_dim))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return torch.sparse.mm(adjacency, self.lin(x)) + self.bias


class LanguageCodebook(nn.Module):
    """Two graph convolutions over word vectors; codes of the modifiers come first, then those of the heads.

    Word vectors and graph are buffers: they belong to the prior, are never trained, and travel with the weights.
    """

    def __init__(self, graph: WordGraph, hidden: int, out_dim: int, dropout: float):
        super().__init__()
        self.graph_words = (graph.modifiers, graph.heads)
        self.dropout = dropout
        self.conv1 = GraphConv(graph.dim, hidden)
        self.conv2 = GraphConv(hidden, out_dim)
        self.register_buffer("vectors", graph.vectors.clone())
        self.register_buffer("edges", graph.edges.clone())
        self._kept: dict[str, tuple[tuple[Tensor, ...], tuple, Tensor]] = {}

    @property
    def graph(self) -> WordGraph:
        """The prior this codebook was built from."""
        modifiers, heads = self.graph_words
        return WordGraph(modifiers, heads, self.vectors.cpu(), self.edges.cpu())

    def _keep(self, name: str, sources: tuple[Tensor, ...], compute: Callable[[], Tensor]) -> Tensor:
        """The result of `compute()`, computed anew only when one of `sources` was moved, replaced or written to."""
        if any(source.is_inference() for source in sources):  # such tensors do not count what is written to them
            return compute()
        key = tuple((source.data_ptr(), source._version) for source in sources)
        if name not in self._kept or self._kept[name][1] != key:
            with torch.inference_mode(False), torch.no_grad():
                # Holding on to the sources keeps their addresses from being given to other tensors.
                self._kept[name] = (tuple(source.detach() for source in sources), key, compute())
        return self._kept[name][2]

    def adjacency(self) -> Tensor:
        """Sparse D^-1/2 (edges in both directions, with multiplicity, + I) D^-1/2; self edges change nothing."""
        return self._keep("adjacency", (self.edges,), lambda: normalised_adjacency(self.edges, len(self.vectors)))

    def project(self) -> Tensor:
        """Codes (V, C), float32, with gradients; in training mode dropout redraws them at every call."""
        with torch.autocast(self.vectors.device.type, enabled=False):
            adjacency = self.adjacency()
            hidden = F.relu(self.conv1(self.vectors, adjacency))
            return self.conv2(F.dropout(hidden, self.dropout, self.training), adjacency)

    def forward(self) -> Tensor:
        """Codes (V, C): computed anew while training, else kept until a weight changes.

        A change is noticed through in-place updates (optimizer steps, load_state_dict, copy_), moves and replacements
        of parameters; writing through `.data` is invisible to PyTorch's version counters and needs `refresh()`.
        """
        if self.training or (torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())):
            return self.project()
        return self._keep("codes", (*self.parameters(), *self.buffers()), self.project)

    @torch.no_grad()
    def start_spread(self, deviation: Tensor, list_sizes: tuple[int, ...]) -> None:
        """Scale and shift a fresh projection so that the codes are centred, with this deviation in every channel.

        Middle and deviation are means over the lists (consecutive words) that are searched apart from each other.
        """
        tables = self.project().split(list_sizes)
        scale = deviation / torch.stack([table.std(0) for table in tables]).mean(0)
        middle = torch.stack([table.mean(0) for table in tables]).mean(0)
        self.conv2.lin.weight.mul_(scale[:, None])
        self.conv2.bias.copy_(scale * (self.conv2.bias - middle))

    def refresh(self) -> None:
        """Forget what was kept."""
        self._kept.clear()
