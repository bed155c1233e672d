"""Read and write the published prior pickles.

A pickle can call any function. This reader only allows constructors of containers, strings, numbers, tensors and
arrays.
"""

from __future__ import annotations

import io
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

# The published file name, then the name in the published code.
RELEASED_NAMES = {
    "spatial": ("mlc_codebook_noun_adj.pkl", "adj_noun_word_knowledge_qwen.pkl"),
    "temporal": ("mlc_codebook_verb_adv.pkl", "big_nlp_word_knowledge_clip_video_qwen.pkl"),
}
_SPATIAL_THRESHOLD = 10  # adjectives and nouns with counts above it are kept
# Keys of modifier counts, head counts, modifier vectors, head vectors and edges.
_KEYS = {
    "spatial": ("adj_code_book_num", "noun_code_book_num", "adj_code_book_vec", "noun_code_book_vec", "adj_noun_edges"),
    "temporal": ("adverb_code_book_num", "verb_code_book_num", "adverb_vec", "verb_vec", "verb_adverb_edges"),
}


def find_released(folder: Path) -> dict[str, Path | None]:
    """The path of each published file in `folder`, None if it is missing."""
    return {
        side: next((folder / name for name in names if (folder / name).is_file()), None)
        for side, names in RELEASED_NAMES.items()
    }


def load_released(folder: str | Path) -> Prior:
    """Read the two published pickles of `folder` by the rules of the published code, without executing them.

    Adjectives and nouns with counts above 10 are kept, except for nouns that are also adjectives of any count. All
    adverbs and verbs are kept. Edges to dropped words are dropped; an edge to a word that is both adverb and verb is
    one to the verb.

    Raises FileNotFoundError for a missing file, ValueError for one with other content.
    """
    graphs = {}
    for side, path in find_released(Path(folder)).items():
        if path is None:
            raise FileNotFoundError(f"no released {side} prior in {folder}: expected {RELEASED_NAMES[side][0]}")
        content, keys = read_pickle(path), _KEYS[side]
        if not isinstance(content, dict) or not set(keys) <= content.keys():
            raise ValueError(f"{path}: expected a dict with the keys {', '.join(keys)}")
        try:
            modifiers, heads = ({word: int(count) for word, count in content[key].items()} for key in keys[:2])
            if side == "spatial":
                heads = {w: n for w, n in heads.items() if n > _SPATIAL_THRESHOLD and w not in modifiers}
                modifiers = {word: count for word, count in modifiers.items() if count > _SPATIAL_THRESHOLD}
            graphs[side] = _graph(modifiers, heads, *(content[key] for key in keys[2:]))
        except (AttributeError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"{path} has unexpected content: {error}") from error
    return Prior(**graphs)


def save_released(prior: Prior, folder: str | Path, raise_counts: bool = False) -> int:
    """Write `prior` as the two published pickles, for `load_released` and the published code.

    Edges are pairs of words there, so an edge to an adverb that is also a verb becomes one to the verb.

    Args:
        raise_counts: write unknown counts, and counts of adjectives and nouns up to 10, as 11: readers drop such words.

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
        vectors = [row.clone() for row in graph.vectors]  # the pickle of a view would contain the whole table
        tables = [dict(zip(words[part], x[part], strict=True)) for x in (counts, vectors) for part in lists]
        edges = [(words[a], words[b]) for a, b in graph.edges.T.tolist()]
        with write_aside(Path(folder) / RELEASED_NAMES[side][0]) as aside, open(aside, "wb") as file:
            pickle.dump(dict(zip(_KEYS[side], [*tables, edges], strict=True)), file, 4)
    both = torch.tensor([word in set(time.heads) for word in time.modifiers] + [False] * time.num_heads)
    return int(both[time.edges].any(0).sum())


def _graph(modifiers: dict, heads: dict, modifier_vectors: dict, head_vectors: dict, edges: list) -> WordGraph:
    vectors = [_vector(modifier_vectors, word) for word in modifiers] + [_vector(head_vectors, word) for word in heads]
    if len({len(vector) for vector in vectors}) > 1:
        raise ValueError(f"word vectors have different widths {sorted({len(vector) for vector in vectors})}")
    index = {word: i for i, word in enumerate([*modifiers, *heads])}  # the verb's index for a word in both lists
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
        value = value.tensor()
    if not isinstance(value, Tensor) or value.squeeze().ndim > 1:
        found = "no vector" if value is None else f"no 1-D vector but {str(value)[:80]}"
        raise ValueError(f"{found} for the word {word!r}")
    return value.reshape(-1).float()


def read_pickle(path: str | Path) -> Any:
    """The content of an untrusted pickle of containers, strings, numbers, torch tensors and numpy arrays.

    Raises ValueError for anything else, which is neither imported nor called.
    """
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        try:
            return _Unpickler(file).load()
        except Exception as error:  # a malicious or damaged pickle may raise anything
            raise ValueError(f"{path} is not a readable prior: {error or type(error).__name__}") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"refused to call {module}.{name}: a prior contains only plain data")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("refused a reference to an object outside the file")


class _Call(tuple):
    """A function whose attributes a pickle cannot set."""

    __slots__ = ()

    def __call__(self, *args: Any) -> Any:
        return self[0](*args)


class _DType:
    """A pickled numpy dtype of booleans, integers or floats."""

    def __init__(self, kind: str, *_: Any) -> None:
        if not isinstance(kind, str) or not re.fullmatch("b1|[iu][1248]|f[248]", kind):
            raise pickle.UnpicklingError(f"refused a numpy array of type {kind!r}")
        self.dtype = np.dtype(kind)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


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
    # The values of a pickled tensor are a nested torch file.
    storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(storage, torch.TypedStorage):
        raise pickle.UnpicklingError(f"expected the storage of a tensor, got {type(storage).__name__}")
    return storage


def _tensor(storage: torch.TypedStorage, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    flat = torch.empty(0, dtype=storage.dtype).set_(storage.untyped())
    return flat.as_strided(size, stride, offset)  # checks the bounds


def _scalar(dtype: _DType, data: bytes) -> int | float:
    return np.frombuffer(data, dtype.dtype)[0].item()


def _latin1(text: str, encoding: str) -> bytes:
    # Old pickle protocols write bytes in this form.
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
    ("numpy", "ndarray"): "numpy.ndarray",  # only an argument of _reconstruct
}
for _kind in (dict, list, set, frozenset, int, float):
    _ALLOWED["builtins", _kind.__name__] = _ALLOWED["__builtin__", _kind.__name__] = _kind  # Python 3 and 2
for _numpy in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    _ALLOWED[f"{_numpy}.multiarray", "_reconstruct"] = _Call([lambda kind, shape, dtype: _Array()])
    _ALLOWED[f"{_numpy}.multiarray", "scalar"] = _Call([_scalar])
    _ALLOWED[f"{_numpy}.numeric", "_frombuffer"] = _Call([_Array])
