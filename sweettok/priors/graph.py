"""Word graphs: the words of a codebook, their vectors, and edges between words that occur together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class WordGraph:
    """Two word lists and the graph between them. The vocabulary is the modifiers followed by the heads.

    Args:
        modifiers, heads: the words, each list without repetition; a word may be in both.
        vectors: float32 (V, d), one row per word of the vocabulary.
        edges: int64 (2, E), undirected pairs of vocabulary indices. A pair that is listed n times has weight n. Edges
            from a word to itself have no effect, since every word is connected to itself with weight 1.
        counts: int64 (V,), occurrences of each word, if known.
        origin: how captions were tagged, and the source of the vectors if it is not the captions.

    Raises ValueError if these do not fit together.
    """

    modifiers: tuple[str, ...]
    heads: tuple[str, ...]
    vectors: Tensor
    edges: Tensor
    counts: Tensor | None = None
    origin: str = ""

    def __post_init__(self) -> None:
        for name in ("modifiers", "heads"):
            _check_words(name, getattr(self, name))
        total = len(self.modifiers) + len(self.heads)
        _check_tensor("vectors", self.vectors, torch.float32, (total, None))
        if self.vectors.shape[1] == 0 or (~self.vectors.isfinite()).any():
            raise ValueError("vectors must be finite and have at least one column")
        _check_tensor("edges", self.edges, torch.int64, (2, None))
        if self.edges.numel() and (self.edges.min() < 0 or self.edges.max() >= total):
            got = f"{int(self.edges.min())}..{int(self.edges.max())}"
            raise ValueError(f"edges must be vocabulary indices 0..{total - 1}, got {got}")
        if self.counts is not None:
            _check_tensor("counts", self.counts, torch.int64, (total,))

    @property
    def words(self) -> tuple[str, ...]:
        """All words in vocabulary order."""
        return self.modifiers + self.heads

    @property
    def num_modifiers(self) -> int:
        return len(self.modifiers)

    @property
    def num_heads(self) -> int:
        return len(self.heads)

    @property
    def dim(self) -> int:
        """Width d of the word vectors."""
        return self.vectors.shape[1]


# The two graphs, with the parts of speech of their modifiers and heads.
SIDES = {"spatial": ("adjective", "noun"), "temporal": ("adverb", "verb")}


@dataclass(frozen=True, eq=False)
class Prior:
    """The two word graphs of a tokenizer."""

    spatial: WordGraph
    temporal: WordGraph


def all_words(prior: Prior) -> WordGraph:
    """All words of both graphs as one list without edges: the modifiers of both, then all other words.

    A word that is in several lists is in the result once, with its first vector. ValueError for vectors of two widths.
    """
    graphs = prior.spatial, prior.temporal
    if prior.spatial.dim != prior.temporal.dim:
        raise ValueError(
            f"one list of all words needs vectors of one width, got {prior.spatial.dim} (spatial) and "
            f"{prior.temporal.dim} (temporal)"
        )
    modifiers = dict.fromkeys(word for graph in graphs for word in graph.modifiers)
    heads = dict.fromkeys(word for graph in graphs for word in graph.heads if word not in modifiers)
    rows = {}
    for start, graph in zip((0, len(prior.spatial.words)), graphs, strict=True):
        for row, word in enumerate(graph.words, start):
            rows.setdefault(word, row)
    order = torch.tensor([rows[word] for word in (*modifiers, *heads)])
    vectors = torch.cat([graph.vectors for graph in graphs])[order]
    return WordGraph(tuple(modifiers), tuple(heads), vectors, torch.zeros(2, 0, dtype=torch.int64))


def _check_words(name: str, words) -> None:
    if not isinstance(words, tuple) or not words or not all(isinstance(word, str) and word for word in words):
        raise ValueError(f"{name} must be a non-empty tuple of non-empty strings")
    if len(set(words)) != len(words):
        repeated = next(word for i, word in enumerate(words) if word in words[:i])
        raise ValueError(f"{name} lists {repeated!r} more than once")


def _check_tensor(name: str, tensor, dtype: torch.dtype, shape: tuple[int | None, ...]) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")
    fits = tensor.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, tensor.shape, strict=True))
    if tensor.dtype != dtype or not fits:
        wanted = ", ".join("*" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must be {dtype} of shape ({wanted}), got {tensor.dtype} {tuple(tensor.shape)}")


def normalised_adjacency(edges: Tensor, num_words: int) -> Tensor:
    """Edges (2, E) -> sparse (V, V) with self loops of weight 1, rows and columns scaled by degree^-1/2."""
    a, b = edges
    loops = torch.arange(num_words, device=edges.device)
    rows, columns = torch.cat((a, b, loops)), torch.cat((b, a, loops))
    weights = torch.cat(((a != b).float().repeat(2), torch.ones(num_words, device=edges.device)))
    scale = torch.zeros(num_words, device=edges.device).index_add_(0, rows, weights).rsqrt()
    values = scale[rows] * weights * scale[columns]
    indices, size = torch.stack((rows, columns)), (num_words, num_words)
    return torch.sparse_coo_tensor(indices, values, size, device=edges.device, check_invariants=True).coalesce()
