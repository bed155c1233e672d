"""The published prior pickles, read without executing them, and written.

A pickle is a program. This reader lets it call nothing but the small constructors of this module, which build
containers, strings, numbers, tensors and arrays.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sweettok.priors.graph import Prior, WordGraph
from sweettok.store import write_aside

# First the published file name, then the name the published code opens.
RELEASED_NAMES = {
    "spatial": ("mlc_codebook_noun_adj.pkl", "adj_noun_word_knowledge_qwen.pkl"),
    "temporal": ("mlc_codebook_verb_adv.pkl", "big_nlp_word_knowledge_clip_video_qwen.pkl"),
}
_SPATIAL_THRESHOLD = 10  # spatial words counted more often are kept
# Keys of each file: modifier counts, head counts, modifier vectors, head vectors, edges.
_KEYS = {
    "spatial": ("adj_code_book_num", "noun_code_book_num", "adj_code_book_vec", "noun_code_book_vec", "adj_noun_edges"),
    "temporal": ("adverb_code_book_num", "verb_code_book_num", "adverb_vec", "verb_vec", "verb_adverb_edges"),
}


def find_released(folder: Path) -> dict[str, Path | None]:
    """The published files in `folder`: {"spatial": path or None, "temporal": path or None}."""
    return {
        side: next((folder / name for name in names if (folder / name).is_file()), None)
        for side, names in RELEASED_NAMES.items()
    }


def load_released(folder: str | Path, spatial_threshold: int = _SPATIAL_THRESHOLD) -> Prior:
    """Read the two published pickles of `folder` by the rules of the published code.

    An adjective or noun is kept if it was counted more than `spatial_threshold` times; a noun that is also an
    adjective, however rare, is dropped. All adverbs and verbs are kept; an edge to a word that is both is to the verb.
    Edges to words that are not kept are dropped.

    Raises FileNotFoundError for a missing file, ValueError for one with other content.
    """
    graphs = {}
    for side, path in find_released(Path(folder)).items():
        if path is None:
            raise FileNotFoundError(f"no released {side} prior in {folder}: expected {RELEASED_NAMES[side][0]}")
        content = read_pickle(path)
        try:
            counts, tables = _check_content(content, _KEYS[side])
            modifiers, heads = counts
            if side == "spatial":
                heads = {w: n for w, n in heads.items() if n > spatial_threshold and w not in modifiers}
                modifiers = {word: count for word, count in modifiers.items() if count > spatial_threshold}
            graphs[side] = _graph(modifiers, heads, *tables)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return Prior(**graphs)


def save_released(prior: Prior, folder: str | Path, raise_counts: bool = False) -> int:
    """Write `prior` as the two published pickles, for `load_released` and the published code.

    The files hold containers, strings, numbers and one float32 tensor per word. Edges are pairs of words, so an edge
    to an adverb that is also a verb becomes one to the verb. Equal priors give equal content, but not equal bytes.

    Args:
        raise_counts: write spatial counts of ten or less, and unknown counts, as eleven: readers drop such words.

    Returns the number of edges that changed. Raises ValueError for a noun that is also an adjective, and for counts
    that are too low unless `raise_counts` is set.
    """
    space, time = prior.spatial, prior.temporal
    repeated = sorted(set(space.modifiers) & set(space.heads))
    if repeated:
        raise ValueError(f"released files cannot hold nouns that are adjectives too: {', '.join(repeated[:10])}")
    rare = len(space.words) if space.counts is None else int((space.counts <= _SPATIAL_THRESHOLD).sum())
    if not raise_counts and (rare or time.counts is None):
        raise ValueError(
            f"{rare} adjectives and nouns have no count above {_SPATIAL_THRESHOLD}, so that readers of released files "
            "would drop them: --raise-counts writes higher counts"
        )
    for side, least in (("spatial", _SPATIAL_THRESHOLD + 1), ("temporal", 1)):
        graph = getattr(prior, side)
        words, lists = graph.words, (slice(graph.num_modifiers), slice(graph.num_modifiers, None))
        counts = [least] * len(words) if graph.counts is None else graph.counts.clamp(min=least).tolist()
        vectors = [row.clone() for row in graph.vectors]  # a view would be written with the whole table behind it
        tables = [dict(zip(words[part], x[part], strict=True)) for x in (counts, vectors) for part in lists]
        edges = [(words[a], words[b]) for a, b in graph.edges.T.tolist()]
        with write_aside(Path(folder) / RELEASED_NAMES[side][0]) as aside, open(aside, "wb") as file:
            pickle.dump(dict(zip(_KEYS[side], [*tables, edges], strict=True)), file, 4)
    both = torch.tensor([word in set(time.heads) for word in time.modifiers] + [False] * time.num_heads)
    return int(both[time.edges].any(0).sum())


def _check_content(content: Any, keys: tuple[str, ...]) -> tuple[list[dict[str, int]], list]:
    """The values of `keys`: counts of modifiers and heads by word; and their vectors by word with the word pairs."""
    if not isinstance(content, dict) or not set(keys) <= content.keys():
        raise ValueError(f"expected a dict with the keys {', '.join(keys)}")
    *tables, edges = values = [content[key] for key in keys]
    for key, table in zip(keys, tables, strict=False):
        if not isinstance(table, dict) or not all(isinstance(word, str) for word in table):
            raise ValueError(f"{key} must map words to values")
    for key, table in zip(keys[:2], tables, strict=False):
        if not all(isinstance(count, (int, float)) and math.isfinite(count) for count in table.values()):
            raise ValueError(f"{key} must map words to numbers")
    for pair in edges if isinstance(edges, (list, tuple, set)) else [edges]:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(w, str) for w in pair):
            raise ValueError(f"{keys[-1]} must hold pairs of words, got {str(pair)[:80]}")
    return [{word: int(count) for word, count in table.items()} for table in tables[:2]], values[2:]


def _graph(modifiers: dict, heads: dict, modifier_vectors: dict, head_vectors: dict, edges: list) -> WordGraph:
    """The graph of the words with these counts."""
    vectors = [_vector(modifier_vectors, word) for word in modifiers] + [_vector(head_vectors, word) for word in heads]
    if len({len(vector) for vector in vectors}) > 1:
        raise ValueError(f"word vectors have different widths {sorted({len(vector) for vector in vectors})}")
    index = {word: i for i, word in enumerate([*modifiers, *heads])}  # of a repeated word, the later one
    pairs = [(index[a], index[b]) for a, b in edges if a in index and b in index]
    return WordGraph(
        tuple(modifiers),
        tuple(heads),
        torch.stack(vectors) if vectors else torch.empty(0, 0),
        torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T.contiguous(),
        torch.tensor([*modifiers.values(), *heads.values()], dtype=torch.int64),
    )


def _vector(table: Mapping[str, Any], word: str) -> Tensor:
    value = table.get(word)
    if isinstance(value, _Array):
        try:
            value = value.tensor()
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"broken array for the word {word!r}: {error}") from error
    if not isinstance(value, Tensor) or value.squeeze().ndim > 1:
        found = "no vector" if value is None else f"no 1-D vector but {str(value)[:80]}"
        raise ValueError(f"{found} for the word {word!r}")
    return value.reshape(-1).float()


def read_pickle(path: str | Path) -> Any:
    """The content of an untrusted pickle of containers, strings, numbers, torch tensors and numpy arrays.

    Raises ValueError naming anything else that the file refers to; it is neither imported nor called.
    """
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        try:
            return _Unpickler(file).load()
        except Exception as error:  # a hostile or broken pickle may raise anything
            raise ValueError(f"{path} is not a readable prior: {error or type(error).__name__}") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"refused to build {module}.{name}: a prior holds only plain data")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("refused a reference to an object outside the file")


class _Call(tuple):
    """A function whose attributes a pickle cannot set."""

    __slots__ = ()

    def __call__(self, *args: Any) -> Any:
        return self[0](*args)


class _DType:
    """A pickled numpy dtype: plain booleans, integers and floats only."""

    def __init__(self, kind: str, *_: Any) -> None:
        if not isinstance(kind, str) or not re.fullmatch("b1|[iu][1248]|f[248]", kind):
            raise pickle.UnpicklingError(f"refused a numpy array of type {kind!r}")
        self.dtype = np.dtype(kind)

    def __setstate__(self, state: tuple) -> None:
        _, order, subarray, names, fields, *_ = state
        if (subarray, names, fields) != (None, None, None):
            raise pickle.UnpicklingError("refused a structured numpy array")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """A pickled numpy array, kept as bytes until `tensor` is called."""

    def __init__(self, data: bytes = b"", dtype: _DType | None = None, shape: Iterable[int] = (), order: str = "C"):
        self.parts = data, dtype, shape, order

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        self.parts = data, dtype, shape, "F" if fortran else "C"

    def tensor(self) -> Tensor:
        data, dtype, shape, order = self.parts
        return torch.from_numpy(np.frombuffer(data, dtype.dtype).reshape(shape, order=order).astype(np.float32))


def _storage(data: bytes) -> torch.TypedStorage:
    # The numbers of a pickled tensor are a nested torch file, itself a pickle, which torch reads safely.
    storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(storage, torch.TypedStorage):
        raise pickle.UnpicklingError(f"expected the numbers of a tensor, got {type(storage).__name__}")
    return storage


def _tensor(storage: torch.TypedStorage, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    flat = torch.empty(0, dtype=storage.dtype).set_(storage.untyped())
    return flat.as_strided(size, stride, offset)  # checks the bounds


def _scalar(dtype: _DType, data: bytes) -> int | float:
    return np.frombuffer(data, dtype.dtype)[0].item()


def _latin1(text: str, encoding: str) -> bytes:
    # How old pickle protocols write bytes.
    return text.encode({"latin1": "latin1"}[encoding])


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("collections", "Counter"): dict,
    ("collections", "defaultdict"): _Call([lambda factory=None: {}]),
    ("_codecs", "encode"): _Call([_latin1]),
    ("torch.storage", "_load_from_bytes"): _Call([_storage]),
    ("torch._utils", "_rebuild_tensor_v2"): _Call([_tensor]),
    ("torch._utils", "_rebuild_parameter"): _Call([lambda data, requires_grad, hooks: data]),
    ("numpy", "dtype"): _Call([_DType]),
    ("numpy", "ndarray"): "numpy.ndarray",  # only ever handed to _reconstruct
}
for _kind in (dict, list, set, frozenset, int, float):
    _ALLOWED["builtins", _kind.__name__] = _ALLOWED["__builtin__", _kind.__name__] = _kind  # Python 3 and 2
for _numpy in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    _ALLOWED[f"{_numpy}.multiarray", "_reconstruct"] = _Call([lambda kind, shape, dtype: _Array()])
    _ALLOWED[f"{_numpy}.multiarray", "scalar"] = _Call([_scalar])
    _ALLOWED[f"{_numpy}.numeric", "_frombuffer"] = _Call([_Array])
