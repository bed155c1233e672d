"""Inputs of the joint stage of VTok: tokenizer, clips with texts, their features, language model and video decoder.

Without values, for `sweettok plan`, models of the Hub have the sizes that their publishers state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from sweettok.data.annotations import AnnotatedClips, load_annotated
from sweettok.data.config import DataConfig
from sweettok.data.lists import ClipList
from sweettok.hub import read_config
from sweettok.stages.inputs import Inputs, SizesOnly
from sweettok.vtok.backbone import build_model
from sweettok.vtok.cache import FeatureDataset, FeatureManifest
from sweettok.vtok.config import VTokConfig
from sweettok.vtok.datasets import open_features
from sweettok.vtok.decoder import PixelFlow, PixelFlowConfig
from sweettok.vtok.dialogues import StoredTokens
from sweettok.vtok.language import VideoLanguageModel
from sweettok.vtok.language_config import LanguageConfig, TemplateConfig
from sweettok.vtok.model import VTok
from sweettok.vtok.output import KEY, MOTION
from sweettok.vtok.parts import PUBLISHED, DecoderConfig
from sweettok.vtok.published import language_model, pipeline
from sweettok.vtok.sources import WordTokens
from sweettok.vtok.text import train_tokenizer


@dataclass(frozen=True)
class Layout:
    """Tokens of a clip: their kinds (L), and patches and channels of their features."""

    kinds: tuple[int, ...]
    patches: int
    dim: int


def open_tokenizer(inputs: Inputs, path: str | None, unit: str, stored: str | None) -> Any:
    """A VTok or the words of a SweetTok, in a folder or on the Hub; or that of stored tokens."""
    if path is None:
        about = FeatureManifest.read(stored)
        return StoredTokens(about.tokenizer_hash, about.dim)
    if isinstance(inputs, SizesOnly) and not Path(path, "config.json").is_file():
        if Path(path) in inputs.outputs:
            return inputs.outputs[Path(path)](inputs)
        inputs.notes.append(f"no tokenizer at {path}: VTok with CLIP ViT-L/14 at 336 pixels assumed")
        return VTok(VTokConfig(), load=False)
    if read_config(path, "VTok", "SweetTok")["model"] == "SweetTok":
        return WordTokens(inputs.tokenizer(path).requires_grad_(False), unit)
    with _disable_current_modes():  # small, or cheap to read
        return VTok.from_pretrained(path)


def open_texts(inputs: Inputs, source: str, data: DataConfig) -> AnnotatedClips:
    """Clips of a list with the texts that stand beside it."""
    try:
        return load_annotated(source, data.root)
    except (OSError, ValueError) as error:
        if inputs.readable:
            raise
        inputs.notes.append(f"epochs are unknown: {str(error).splitlines()[0]}")
        return AnnotatedClips(ClipList((), None, None, ()), (), ())


def features_of(source: Any, annotated: AnnotatedClips, folder: str, stored: str | None) -> FeatureDataset:
    """The features of all clips: stored ones, or those in `folder`, where missing ones are computed."""
    return FeatureDataset(stored) if stored is not None else open_features(source, annotated.clips, folder)


def layout_of(inputs: Inputs, source: Any, decoder: DecoderConfig, stored: str | None) -> Layout:
    """The layout of the tokens of clips that are not read."""
    if stored is not None:
        about = FeatureManifest.read(stored)
        return Layout(about.kinds, about.patches, about.dim)
    if isinstance(source, WordTokens):
        layout, config = source.tokenizer.layout, source.tokenizer.config
        per_query = 1 if source.unit == "words" else 1 + config.modifiers_per_query
        lengths = zip((KEY, MOTION), (segment.length // per_query for segment in layout.segments), strict=False)
        return Layout(tuple(kind for kind, length in lengths for _ in range(length)), 1, source.dim)
    keys = source.config.grid[0] * source.config.grid[1]
    motions = source.num_tokens(frames=decoder.frames, fps=decoder.fps) - keys
    inputs.notes.append(f"clips of {decoder.frames} frames at {decoder.fps:g} per second: {keys} + {motions} tokens")
    rows, columns = source.patches
    return Layout((KEY,) * keys + (MOTION,) * motions, rows * columns, source.dim)


def open_language(inputs: Inputs, config: LanguageConfig, texts: Iterable[str]) -> VideoLanguageModel:
    """A new language model, around `config.base`, or from scratch with a tokenizer trained on `texts`."""
    if config.base is None:
        return VideoLanguageModel.from_scratch(config, texts)
    if inputs.readable:
        return VideoLanguageModel.from_base(config)
    model = build_model(language_model(config.base), getattr(torch, config.dtype))
    return VideoLanguageModel(replace(config, template=TemplateConfig()), model, train_tokenizer((), 260))


def open_decoder(inputs: Inputs, config: DecoderConfig, recompute: bool) -> Any:
    """The frozen video decoder, or None."""
    if config.kind == "none":
        return None
    if config.kind != "pixels":
        options = {"gradient_checkpointing": recompute}
        if inputs.readable:
            return config.open(**options)
        return PUBLISHED[config.kind](pipeline(config.kind, config.path, getattr(torch, config.dtype)), **options)
    path = Path(config.path)
    if not isinstance(inputs, SizesOnly):
        return PixelFlow.from_pretrained(config.path).requires_grad_(False)
    if path in inputs.outputs:
        return inputs.outputs[path](inputs)
    if (path / "config.json").is_file():
        with _disable_current_modes():
            return PixelFlow.from_pretrained(config.path).requires_grad_(False)
    inputs.notes.append(f"no decoder at {config.path}: the default sizes of PixelFlow assumed")
    return PixelFlow(PixelFlowConfig())
