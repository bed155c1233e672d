"""Inputs of the stages: trained models, word graphs, clips and tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.data import Dataset

from sweettok.config import build
from sweettok.data.annotations import AnnotatedClips, load_annotated
from sweettok.data.config import AnnotatedDataConfig, DataConfig
from sweettok.data.dataset import ClipDataset
from sweettok.data.frames import KeptClips
from sweettok.data.lists import ClipList, load_clips
from sweettok.data.manifest import StoredLayout, TokenManifest
from sweettok.data.preprocess import Preprocessing
from sweettok.data.tokens import TokenDataset
from sweettok.generator.config import GeneratorConfig
from sweettok.hub import find_shipped
from sweettok.losses.config import PerceptualConfig
from sweettok.losses.weights import load_perceptual
from sweettok.priors.graph import Prior, WordGraph
from sweettok.priors.io import load_prior
from sweettok.proxy.config import ProxyConfig
from sweettok.proxy.model import ProxyTokenizer
from sweettok.tokenizer.base import codebook_prefix
from sweettok.tokenizer.config import TokenizerConfig, WordsConfig
from sweettok.tokenizer.layout import TokenLayout
from sweettok.tokenizer.model import SweetTok
from sweettok.train.config import TrainConfig
from sweettok.vtok.cache import FeatureDataset
from sweettok.vtok.config import VTokConfig
from sweettok.vtok.datasets import open_features
from sweettok.vtok.model import VTok

WORD_DIM, NUM_CLASSES = 512, 101  # assumed if unknown: width of CLIP's word vectors, classes of UCF-101


class Inputs:
    """Reads the inputs of a task. `sweettok plan` uses a subclass whose tensors have sizes but no values."""

    readable = True  # whether there are values; without them, tasks skip what depends on them

    def proxy(self, path: str, config: ProxyConfig) -> ProxyTokenizer:
        """The proxy tokenizer in a folder, or of the published file; `config` is the expected one."""
        path = find_shipped(path, "ProxyTokenizer")
        if not Path(path).exists():
            raise FileNotFoundError(
                f"no proxy tokenizer at {path}: set proxy to a folder that run_train_proxy.sh wrote, or get the "
                "published file (checkpoints/README.md)"
            )
        return ProxyTokenizer.from_pretrained(path) if Path(path).is_dir() else ProxyTokenizer.from_release(path)

    def prior(self, path: str, words: WordsConfig) -> Prior:
        """The word graphs in a folder; `words` are the expected sizes."""
        return load_prior(path)

    def tokenizer(self, path: str, proxy: str | None = None, prior: str | None = None) -> SweetTok:
        """The tokenizer in a folder, or of a published file together with its proxy and word graphs."""
        path = find_shipped(path)
        if Path(path).is_file():
            if not prior:
                raise ValueError(f"{path} is a published file, which holds no word graphs: set prior=FOLDER")
            return SweetTok.from_release(path, prior, proxy=self.proxy(proxy, ProxyConfig()) if proxy else None)
        unused = [name for name, value in (("proxy", proxy), ("prior", prior)) if value]
        if unused:
            raise ValueError(f"{path} holds its own proxy and prior: leave {' and '.join(unused)} empty")
        return SweetTok.from_pretrained(path)

    def perceptual(self, config: PerceptualConfig) -> nn.Module | None:
        """The frozen network of the perceptual loss."""
        return load_perceptual(config)

    def clips(self, source: str, data: DataConfig, size: ProxyConfig, seed: int | None = None) -> Dataset:
        """Clips of a list or folder; with `size.num_frames` 1, images or frames of videos.

        With a seed, for training: clips start at random, and unreadable ones are replaced. Without, for validation:
        clips are from the middle, and unreadable ones are errors, because replacing them would change the metrics.
        """
        training = seed is not None
        return ClipDataset(
            load_clips(source, data.root),
            size.num_frames,
            (size.height, size.width),
            "random" if training else "center",
            data.stride,
            data.resize,
            data.short,
            seed or 0,
            timeout=data.read_timeout,
            substitute=training,
        )

    def tokens(self, folder: str, generator: GeneratorConfig, tokenizer: str | None) -> TokenDataset:
        """Token shards; `generator` and `tokenizer` are the run's settings."""
        return TokenDataset(folder)

    def vtok(self, path: str) -> VTok:
        """The VTok in a folder, frozen."""
        return VTok.from_pretrained(path).requires_grad_(False)

    def annotated(self, source: str, data: AnnotatedDataConfig) -> AnnotatedClips:
        """Clips of a list or folder with their annotations."""
        return load_annotated(source, data.root)

    def pixels(
        self,
        clips: ClipList,
        data: AnnotatedDataConfig,
        frames: int,
        size: tuple[int, int],
        how: Preprocessing,
        training: bool,
    ) -> Dataset:
        """The first `frames` frames of clips at a size. In training, unreadable clips are replaced."""
        options = {"timeout": data.read_timeout, "substitute": training}
        found = ClipDataset(clips, frames, size, "first", how.stride, how.resize, how.short, **options)
        return KeptClips(found) if data.keep else found

    def features(
        self, tokenizer: VTok, clips: ClipList, data: AnnotatedDataConfig, train: TrainConfig, frames: int
    ) -> FeatureDataset:
        """Features of the first `frames` frames of clips; missing ones are computed."""
        return open_features(tokenizer, clips, data.features or Path(train.output_dir) / "features", frames)


class SizesOnly(Inputs):
    """Inputs without values, with the sizes of existing files, of other runs' outputs, or else of the release.

    Args:
        outputs: folders that other runs will write -> function that builds the model.

    Attributes:
        notes: assumptions that were made.
    """

    readable = False

    def __init__(self, outputs: Mapping[Path, Callable[[Inputs], nn.Module]]):
        self.outputs, self.notes = outputs, []

    def proxy(self, path, config):
        return ProxyTokenizer(config)

    def prior(self, path, words):
        try:
            with _disable_current_modes():
                return super().prior(path, words)
        except (OSError, ValueError):
            sizes = [getattr(words, name) or getattr(TokenLayout, name) for name in vars(words)]
            counts = ", ".join(f"{size:,}" for size in sizes)
            self.notes.append(f"no word graphs at {path}: lists of {counts} words with {WORD_DIM}-wide vectors assumed")
            return Prior(empty_graph(*sizes[:2], WORD_DIM), empty_graph(*sizes[2:], WORD_DIM))

    def tokenizer(self, path, proxy=None, prior=None):
        folder = Path(find_shipped(path))
        if (folder / "config.json").is_file():
            about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            config, graphs = build(TokenizerConfig, about["config"]), []
            with safe_open(folder / "model.safetensors", framework="pt") as file:
                for branch, words in about["assets"]["words"].items():
                    names = (codebook_prefix(config, branch) + name for name in ("vectors", "edges"))
                    dim, edges = (file.get_slice(name).get_shape()[1] for name in names)
                    graphs.append(empty_graph(*map(len, words), dim, edges))
            return SweetTok(config, Prior(*graphs) if len(graphs) == 2 else graphs[0])
        if folder in self.outputs:
            return self.outputs[folder](self)
        if not folder.is_file():
            self.notes.append(f"no tokenizer at {path}: the release's sizes assumed; plan the run that writes it too")
        return SweetTok(TokenizerConfig(), self.prior(prior or "an unnamed folder", WordsConfig()))

    def perceptual(self, config):
        return super().perceptual(replace(config, untrained=True, weights=None, linear_weights=None))

    def clips(self, source, data, size, seed=None):
        try:
            return range(len(load_clips(source, data.root)))
        except (OSError, ValueError) as error:
            if seed is not None:
                self.notes.append(f"epochs are unknown: {str(error).splitlines()[0]}")
            return range(0)

    def vtok(self, path):
        folder = Path(path)
        if folder in self.outputs:
            return self.outputs[folder](self)
        if (folder / "config.json").is_file():
            about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            return VTok(build(VTokConfig, about["config"]), False, about["assets"]["architecture"])
        self.notes.append(f"no VTok at {path}: CLIP ViT-L/14 at 336 pixels assumed; plan the run that writes it too")
        return VTok(VTokConfig(), load=False)

    def annotated(self, source, data):
        return self.clips(source, data, None)

    def tokens(self, folder, generator, tokenizer):
        if (Path(folder) / "manifest.json").is_file():
            facts = TokenManifest.read(folder)
            return SizedTokens(folder, facts.num_rows, facts.layout, facts.num_classes, facts.given_frames)
        self.notes.append(f"epochs are unknown: no tokens at {folder}")
        classes = generator.num_classes
        if classes is None and generator.given_frames is None:
            self.notes.append(f"{NUM_CLASSES} classes assumed")
            classes = NUM_CLASSES
        layout = StoredLayout.of(generator.layout or self.tokenizer(tokenizer or "an unnamed folder").layout)
        return SizedTokens(folder, 0, layout, classes, generator.given_frames)


@dataclass(frozen=True)
class SizedTokens:
    """The part of `TokenDataset` that the generator's task uses."""

    folder: str
    rows: int
    layout: StoredLayout
    num_classes: int | None
    given_frames: int | None
    tokenizer_hash: str | None = None
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self.rows


def empty_graph(modifiers: int, heads: int, dim: int, edges: int = 0) -> WordGraph:
    """Word graph with placeholder words, whose vectors and edges need no memory."""
    names = (tuple(f"{kind}{number}" for number in range(count)) for kind, count in (("m", modifiers), ("h", heads)))
    with _disable_current_modes():  # the graph checks its values
        pairs = torch.zeros(1, 1, dtype=torch.long).expand(2, edges)
        return WordGraph(*names, torch.zeros(1, 1).expand(modifiers + heads, dim), pairs)


def image_size(size: ProxyConfig) -> ProxyConfig:
    """The size for clips of one frame."""
    return replace(size, num_frames=1)
