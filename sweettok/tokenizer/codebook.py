"""Motion-enhanced language codebook (MLC): a graph of words becomes a table of code vectors.

Letters: V words (modifiers first), d width of the word vectors, C width of the codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweettok.layers.graph import GraphConv
from sweettok.priors.graph import WordGraph, normalised_adjacency


class LanguageCodebook(nn.Module):
    """Two graph convolutions over word vectors; codes of the modifiers come first, then those of the heads.

    Word vectors and graph are buffers: they belong to the prior, are never trained, and are saved with the weights.

    In evaluation mode the codes are computed once and kept. `eval`, `load_state_dict`, `to` and calls outside compiled
    graphs compute them again when weights have changed. Call `refresh()` after writes through `.data`, and after
    changes in evaluation mode before a compiled graph runs.
    """

    places: Tensor  # (2, E) entries of the normalised adjacency
    values: Tensor  # (E,)

    def __init__(self, graph: WordGraph, hidden: int, out_dim: int, dropout: float):
        super().__init__()
        self.graph_words = (graph.modifiers, graph.heads)
        self.dropout = dropout
        self.make_weights(graph, hidden, out_dim)
        self.register_buffer("vectors", graph.vectors.clone())
        self.register_buffer("edges", graph.edges.clone())
        self.register_buffer("places", None, persistent=False)
        self.register_buffer("values", None, persistent=False)
        self._set_adjacency()
        self._codes: Tensor | None = None
        self._sources: list[tuple[Tensor, int]] = []  # inputs of the kept codes, and their versions
        self.register_load_state_dict_post_hook(_refresh)

    def forward(self) -> Tensor:
        """Codes (V, C), float32; in training mode dropout gives others at every call."""
        if self.training or (torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())):
            return self.project()
        if not torch.compiler.is_compiling():
            self._update()
        return self.project() if self._codes is None else self._codes

    def make_weights(self, graph: WordGraph, hidden: int, out_dim: int) -> None:
        self.conv1 = GraphConv(graph.dim, hidden)
        self.conv2 = GraphConv(hidden, out_dim)

    def project(self) -> Tensor:
        """Codes (V, C), float32, computed from the present weights, with dropout in training mode."""
        with torch.autocast(self.vectors.device.type, enabled=False):
            hidden = F.relu(self.conv1(self.vectors, self.places, self.values))
            return self.conv2(F.dropout(hidden, self.dropout, self.training), self.places, self.values)

    @property
    def graph(self) -> WordGraph:
        """The prior this codebook was built from."""
        modifiers, heads = self.graph_words
        return WordGraph(modifiers, heads, self.vectors.cpu(), self.edges.cpu())

    @torch.no_grad()
    def start_spread(self, deviation: Tensor, list_sizes: tuple[int, ...]) -> None:
        """Scale and shift a fresh projection so that the codes have mean 0 and this deviation in every channel.

        Mean and deviation are averaged over the lists (consecutive words) that are searched separately.
        """
        tables = self.project().split(list_sizes)
        scale = deviation / torch.stack([table.std(0) for table in tables]).mean(0)
        middle = torch.stack([table.mean(0) for table in tables]).mean(0)
        self.transform_codes(scale, middle)

    def transform_codes(self, scale: Tensor, middle: Tensor) -> None:
        """Change the weights so that codes c become scale * (c - middle)."""
        self.conv2.lin.weight.mul_(scale[:, None])
        self.conv2.bias.copy_(scale * (self.conv2.bias - middle))

    def refresh(self) -> None:
        """Recompute the adjacency and, in evaluation mode, the codes."""
        self._codes, self._sources = None, []
        self._set_adjacency()
        self._update()

    def train(self, mode: bool = True) -> LanguageCodebook:
        super().train(mode)
        self._update()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any) -> LanguageCodebook:
        super()._apply(fn, *args)  # `to`, `cuda`, `float`, ...
        self.refresh()
        return self

    def _update(self) -> None:
        """Keep the codes of the present weights, except in training mode and where changes cannot be detected."""
        sources = [*self.parameters(), self.vectors, self.edges]
        # Inference tensors have no version counter; sharded ones are whole only during a forward.
        if self.training or any(x.is_inference() or hasattr(x, "device_mesh") for x in sources):
            self._codes, self._sources = None, []
            return
        if [(id(x), x._version) for x in sources] == [(id(x), version) for x, version in self._sources]:
            return
        with torch.inference_mode(False), torch.no_grad():
            if self._sources:
                self._set_adjacency()
            self._codes = self.project()
        self._sources = [(x, x._version) for x in sources]

    def _set_adjacency(self) -> None:
        """D^-1/2 (edges in both directions, with multiplicity, + I) D^-1/2; self edges change nothing."""
        if type(self.edges) is Tensor and not self.edges.is_meta:
            adjacency = normalised_adjacency(self.edges, len(self.vectors))
            self.places, self.values = adjacency.indices().clone(), adjacency.values().clone()
        else:  # meta or sharded: the values are not known, so no entries can be merged
            entries = 2 * self.edges.shape[1] + len(self.vectors)
            self.places, self.values = self.edges.new_zeros(2, entries), self.vectors.new_zeros(entries)


class LinearCodebook(LanguageCodebook):
    """A linear layer over the word vectors, without the graph: the paper's plain language codebook."""

    def make_weights(self, graph: WordGraph, hidden: int, out_dim: int) -> None:
        self.projection = nn.Linear(graph.dim, out_dim)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def project(self) -> Tensor:
        with torch.autocast(self.vectors.device.type, enabled=False):
            return self.projection(self.vectors)

    def transform_codes(self, scale: Tensor, middle: Tensor) -> None:
        self.projection.weight.mul_(scale[:, None])
        self.projection.bias.copy_(scale * (self.projection.bias - middle))


class LearnedCodebook(LanguageCodebook):
    """A learned vector for each word, as in VQ-VAE: the words are names without influence on the codes."""

    def make_weights(self, graph: WordGraph, hidden: int, out_dim: int) -> None:
        self.table = nn.Parameter(torch.randn(len(graph.words), out_dim) * out_dim**-0.5)

    def project(self) -> Tensor:
        return self.table.clone()  # kept codes must not be the parameter itself

    def transform_codes(self, scale: Tensor, middle: Tensor) -> None:
        self.table.copy_(scale * (self.table - middle))


# By `TokenizerConfig.codebook`.
CODEBOOKS = {"mlc": LanguageCodebook, "language": LinearCodebook, "learned": LearnedCodebook}


def _refresh(codebook: LanguageCodebook, _: Any) -> None:
    codebook.refresh()
