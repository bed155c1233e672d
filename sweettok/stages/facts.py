"""Sizes of a run's inputs, from the inputs themselves, from the stages that will write them, or from the release."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import safe_open

from sweettok.config import build
from sweettok.data.lists import load_clips
from sweettok.data.tokens import TokenManifest
from sweettok.priors.graph import Prior, WordGraph
from sweettok.priors.io import load_prior
from sweettok.stages.generator import GeneratorRun
from sweettok.stages.spatial import SpatialRun
from sweettok.stages.stage1 import Stage1Run
from sweettok.stages.stage2 import Stage2Run
from sweettok.tokenizer.config import TokenizerConfig, WordsConfig
from sweettok.tokenizer.layout import TokenLayout
from sweettok.train.config import RunConfig

WORD_DIM = 512  # width of CLIP's word vectors
NUM_CLASSES = 101


class Facts:
    """What a run's inputs say about sizes, and notes on what had to be assumed."""

    def __init__(self, run: RunConfig, others: Sequence[RunConfig] = ()):
        self.notes: list[str] = []
        self.outputs = {Path(other.train.output_dir) / "final": other for other in others}
        self.tokenizer: TokenizerConfig | None = None
        self.prior: Prior | None = None
        self.tokens = SimpleNamespace(folder=run.data.train, tokenizer_hash=None, class_names=None)
        if isinstance(run, SpatialRun | Stage1Run):
            self.prior = self._prior(run.prior, run.tokenizer.words)
        elif isinstance(run, Stage2Run):
            self.tokenizer, self.prior = self._tokenizer(run.tokenizer, run.prior)
        elif isinstance(run, GeneratorRun):
            self._read_tokens(run)
        self.num_clips = self._count_clips(run)

    def _count_clips(self, run: RunConfig) -> int | None:
        if isinstance(run, GeneratorRun):
            return self.tokens.num_rows
        try:
            return len(load_clips(run.data.train, run.data.root))
        except (OSError, ValueError) as error:
            self.notes.append(f"epochs are unknown: {str(error).splitlines()[0]}")
            return None

    def _prior(self, folder: str | None, words: WordsConfig) -> Prior:
        """The word graphs, or empty ones of the configured sizes, or else of the release's."""
        if folder is not None and Path(folder).is_dir():
            try:
                return load_prior(folder)
            except FileNotFoundError:
                pass
        lists = ("adjectives", "nouns", "adverbs", "verbs")
        sizes = [getattr(words, name) or getattr(TokenLayout, name) for name in lists]
        self.notes.append(
            f"no word graphs{f' at {folder}' if folder else ''}: lists of {', '.join(f'{size:,}' for size in sizes)} "
            f"words with {WORD_DIM}-wide vectors assumed"
        )
        return Prior(empty_graph(*sizes[:2], WORD_DIM), empty_graph(*sizes[2:], WORD_DIM))

    def _tokenizer(self, path: str, prior: str | None = None) -> tuple[TokenizerConfig, Prior]:
        """Sizes of a saved tokenizer, of one that another stage will save, or of the release's."""
        folder, source = Path(path), self.outputs.get(Path(path))
        if (folder / "config.json").is_file():
            config = build(TokenizerConfig, json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"])
            words, shapes = config.words, []
            with safe_open(folder / "model.safetensors", framework="pt") as file:
                for side in ("spatial", "temporal"):
                    prefix = f"{side}_quantizer.codebook."
                    dim, edges = (file.get_slice(prefix + name).get_shape()[1] for name in ("vectors", "edges"))
                    shapes.append((dim, edges))
            spatial = empty_graph(words.adjectives, words.nouns, *shapes[0])
            return config, Prior(spatial, empty_graph(words.adverbs, words.verbs, *shapes[1]))
        if isinstance(source, Stage1Run):
            return source.tokenizer, self._prior(source.prior, source.tokenizer.words)
        if isinstance(source, Stage2Run):
            return self._tokenizer(source.tokenizer, source.prior)
        if not folder.is_file():
            self.notes.append(f"no tokenizer at {path}: the release's sizes assumed (or plan the stage before it too)")
        return TokenizerConfig(), self._prior(prior, WordsConfig())

    def _read_tokens(self, run: GeneratorRun) -> None:
        """Facts of the token shards, and the tokenizer that decodes samples."""
        config, tokens = run.generator, self.tokens
        samples = run.tokenizer is not None and run.train.sample_every > 0
        if (Path(run.data.train) / "manifest.json").is_file():
            manifest = TokenManifest.read(run.data.train)
            tokens.layout, tokens.num_classes = manifest.layout, manifest.num_classes
            tokens.given_frames, tokens.num_rows = manifest.given_frames, manifest.num_rows
        else:
            self.notes.append(f"epochs are unknown: no tokens at {run.data.train}")
            tokens.num_rows, tokens.given_frames = None, config.given_frames
            tokens.layout, tokens.num_classes = config.layout, config.num_classes
            if tokens.num_classes is None and config.given_frames is None:
                tokens.num_classes = NUM_CLASSES
                self.notes.append(f"{NUM_CLASSES} classes assumed")
        if tokens.layout is None or samples:
            self.tokenizer, self.prior = self._tokenizer(run.tokenizer or "an unnamed place")
            tokens.layout = tokens.layout or layout_of(self.tokenizer, self.prior)
        if not samples:
            self.tokenizer = None


def empty_graph(modifiers: int, heads: int, dim: int, edges: int = 0) -> WordGraph:
    """Nameless words, whose vectors and edges take no memory."""
    names = (tuple(f"{kind}{i}" for i in range(count)) for kind, count in (("m", modifiers), ("h", heads)))
    pairs = torch.zeros(1, 1, dtype=torch.long).expand(2, edges)
    return WordGraph(*names, torch.zeros(1, 1).expand(modifiers + heads, dim), pairs)


def layout_of(config: TokenizerConfig, prior: Prior) -> TokenLayout:
    """The layout that a tokenizer of these sizes has."""
    return TokenLayout(
        config.num_spatial_queries, config.num_temporal_queries, prior.spatial.num_modifiers, prior.spatial.num_heads,
        prior.temporal.num_modifiers, prior.temporal.num_heads, config.modifiers_per_query, config.lookup,
    )  # fmt: skip
