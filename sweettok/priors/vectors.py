"""Word vectors from the captions, a file, CLIP's text encoder, or the input embedding of a language model."""

from __future__ import annotations

import pickle
import re
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
import torch

from sweettok.priors.captions import Word, open_lines

_DENSE_UP_TO = 1000  # words; the full SVD takes about a second then, and a truncated one might not converge
_JITTER = 0.01  # standard deviation of the noise that separates equal vectors


class VectorSource(Protocol):
    """A source of word vectors; `name` becomes part of the graphs' `origin`."""

    name: str

    def vectors(self, words: Sequence[str]) -> Mapping[str, np.ndarray]:
        """The vectors of the known words, all of the same width."""


def word_vectors(together: scipy.sparse.csr_matrix, captions: int, words: Sequence[Word], dim: int) -> np.ndarray:
    """Vectors from the captions: float32 (len(words), dim) of unit root mean square, deterministic.

    They are a truncated SVD of the positive pointwise mutual information (Levy and Goldberg 2014). Equal vectors (of
    words that only occur together) and zero vectors get a little noise that depends on the spelling, so that all words
    have different codes.

    Args:
        together: (V, V), see `shared_captions`.
        captions: number of all captions.
    """
    if not 1 <= dim <= len(words):
        raise ValueError(f"dim must be from 1 to the number of words ({len(words)}), got {dim}")
    left, sizes = _truncated_svd(_ppmi(together, captions), dim)
    strongest = left[np.abs(left).argmax(axis=0), np.arange(dim)]
    table = left * np.sign(strongest) * np.sqrt(sizes)  # the sign of singular vectors is arbitrary
    table /= root_mean_square(table) or 1
    _, group, members = np.unique(table.round(6), axis=0, return_inverse=True, return_counts=True)
    alike = (members[group.reshape(-1)] > 1) | (np.abs(table).max(axis=1) < 1e-6)
    for i in np.flatnonzero(alike):
        table[i] += _JITTER * np.random.RandomState(zlib.crc32(" ".join(words[i]).encode())).standard_normal(dim)
    return (table / root_mean_square(table)).astype(np.float32)


def root_mean_square(table: np.ndarray) -> float:
    return float(np.sqrt((table**2).mean()))


def _ppmi(together: scipy.sparse.csr_matrix, captions: int) -> scipy.sparse.csr_matrix:
    """Positive pointwise mutual information of words in a caption, (V, V)."""
    share = together.diagonal() / captions
    rows = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
    information = np.log(together.data / captions / (share[rows] * share[together.indices]))
    return scipy.sparse.csr_matrix((np.maximum(information, 0), together.indices, together.indptr), together.shape)


def _truncated_svd(matrix: scipy.sparse.csr_matrix, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The `dim` leading left singular vectors and singular values, largest first."""
    total = matrix.shape[0]
    if total <= _DENSE_UP_TO or 2 * dim > total:
        left, sizes, _ = scipy.linalg.svd(matrix.toarray())
        return left[:, :dim], sizes[:dim]
    start = np.random.RandomState(0).standard_normal(total)  # the default is random
    left, sizes, _ = scipy.sparse.linalg.svds(matrix, k=dim, v0=start)
    order = np.argsort(-sizes)
    return left[:, order], sizes[order]


@dataclass(frozen=True)
class TableVectors:
    """A text file in the format of word2vec and GloVe, a word and its numbers per line: `red 0.1 -0.2 ...`.

    A first line of two integers (words, width) is skipped. A word may consist of parts joined by spaces or underscores,
    and be separated from the numbers by a tab. Files named .gz are decompressed. Words are compared in lower case; of
    several spellings, the lower-case one is used, or else the first.

    Raises ValueError naming a line that has another format, or another width than the first.
    """

    path: str

    @property
    def name(self) -> str:
        return f"table {Path(self.path).name}"

    def vectors(self, words: Sequence[str]) -> dict[str, np.ndarray]:
        wanted, exact, width = set(words), set(), None
        found: dict[str, np.ndarray] = {}
        with open_lines(self.path) as (_, file):
            for number, line in enumerate(file, 1):
                if not line.strip() or (number == 1 and re.fullmatch(rb"\d+ \d+\s*", line)):
                    continue
                try:
                    spelling, values = _split_entry(line.decode("utf-8"), width)
                    width = width or len(values)
                    word = unicodedata.normalize("NFC", spelling.lower())
                    word = word if word in wanted else word.replace("_", " ")
                    if word in exact or word not in wanted or (word in found and spelling != word):
                        continue
                    found[word] = _vector(values, width)
                except ValueError as error:
                    raise ValueError(f"{self.path}, line {number}: not a word with its vector: {error}") from error
                if spelling == word:
                    exact.add(word)
        return found


def _split_entry(entry: str, width: int | None) -> tuple[str, list[str]]:
    if "\t" in entry:
        word, _, numbers = entry.partition("\t")
        return word.strip(), numbers.split()
    parts = entry.split()
    width = width or len(parts) - 1
    if len(parts) <= width or not width:
        raise ValueError(f"expected a word and {width or 'its'} numbers")
    return " ".join(parts[:-width]), parts[-width:]


def _vector(values: list[str], width: int) -> np.ndarray:
    vector = np.array(values, dtype=np.float32)
    if len(vector) != width or not np.isfinite(vector).all():
        raise ValueError(f"{len(vector)} numbers, expected {width} finite ones")
    return vector


def load_clip(name: str, weights: str | None, device: str = "cpu") -> Any:
    """A model of open_clip with its weights.

    Args:
        name: of the model in open_clip.
        weights: their name in open_clip, or a file; None for models that include weights ("hf-hub:...").

    Raises ValueError for unknown names and unsuitable files, OSError if a download fails.
    """
    import open_clip

    if ":" not in name:
        tags = open_clip.list_pretrained_tags_by_model(name)
        if name not in open_clip.list_models():
            raise ValueError(f"open_clip has no model {name!r}: see open_clip.list_models()")
        if weights not in tags and not Path(weights or "").is_file():
            raise ValueError(f"{weights!r} is neither a file nor weights of {name}: {', '.join(tags)}")
        trained = open_clip.get_pretrained_cfg(name, weights).get("quick_gelu", False)
        if weights in tags and trained != open_clip.get_model_config(name).get("quick_gelu", False):
            other = f"{name}-quickgelu" if trained else name.removesuffix("-quickgelu")
            raise ValueError(f"the weights {weights} of {name} were trained with another activation: use {other}")
    elif weights is not None:
        raise ValueError(f"{name} includes its weights: omit {weights!r}")
    try:
        return open_clip.create_model(name, pretrained=weights, device=device)
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        if "download" in str(error):
            raise OSError(f"{weights or name}: the weights cannot be downloaded: {error}") from error
        raise ValueError(f"{weights} does not contain the weights of {name}: {error}") from error


@dataclass(frozen=True)
class ClipVectors:
    """Embeddings of CLIP's text encoder, by open_clip.

    Args:
        model: name in open_clip.
        weights: their name in open_clip, or a file; None for models that include weights ("hf-hub:...").
        prompt: text with "{}" for the word.
    """

    model: str = "ViT-L-14"
    weights: str | None = None
    prompt: str = "{}"
    batch_size: int = 256
    device: str = "cpu"

    @property
    def name(self) -> str:
        weights = "" if self.weights is None else f" {Path(self.weights).name}"
        return f"open_clip {self.model}{weights}, prompt {self.prompt!r}"

    @torch.no_grad()
    def vectors(self, words: Sequence[str]) -> dict[str, np.ndarray]:
        import open_clip

        texts = _prompted(words, self.prompt)
        model = load_clip(self.model, self.weights, self.device).eval()
        tokenize = open_clip.get_tokenizer(self.model)
        batches = [texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size)]
        rows = [model.encode_text(tokenize(batch).to(self.device)).float().cpu().numpy() for batch in batches]
        return dict(zip(words, np.concatenate(rows), strict=True))


@dataclass(frozen=True)
class CausalLMVectors:
    """Rows of the input embedding of a causal language model of Hugging Face, averaged over the tokens of a word.

    Args:
        model: folder or name at Hugging Face.
        prompt: text with "{}" for the word. Most vocabularies contain whole words only after a space.
    """

    model: str
    prompt: str = " {}"

    @property
    def name(self) -> str:
        return f"input embedding of {Path(self.model).name}, prompt {self.prompt!r}"

    @torch.no_grad()
    def vectors(self, words: Sequence[str]) -> dict[str, np.ndarray]:
        texts = _prompted(words, self.prompt)
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise ValueError(
                'vectors of a language model need transformers: pip install "sweettok[llm]" (in a clone: pip install '
                '-e ".[llm]")'
            ) from error
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        table = AutoModelForCausalLM.from_pretrained(self.model, dtype="auto").get_input_embeddings().weight
        found = {}
        for word, ids in zip(words, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True):
            if not ids:
                raise ValueError(f"the tokenizer of {self.model} finds no token in {word!r}")
            found[word] = table[torch.tensor(ids, device=table.device)].float().mean(0).cpu().numpy()
        return found


def _prompted(words: Sequence[str], prompt: str) -> list[str]:
    if "{}" not in prompt:
        raise ValueError(f'a prompt must contain "{{}}" for the word, got {prompt!r}')
    return [prompt.replace("{}", word) for word in words]
