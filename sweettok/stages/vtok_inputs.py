"""Inputs of the joint stage of VTok: tokenizer, clips with texts, their features, language model and video decoder.

Without values, for `sweettok plan`, models of the Hub have the sizes that their publishers state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from sweettok.data.annotations import AnnotatedClips, load_annotated
from sweettok.data.config import AnnotatedDataConfig
from sweettok.data.lists import ClipList
from sweettok.hub import read_config
from sweettok.stages.inputs import Inputs, SizesOnly
from sweettok.vtok.backbone import build_model
from sweettok.vtok.decoder import PixelFlow, PixelFlowConfig
from sweettok.vtok.language import VideoLanguageModel
from sweettok.vtok.language_config import LanguageConfig, TemplateConfig
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


def open_tokenizer(inputs: Inputs, path: str, unit: str) -> Any:
    """A VTok or the words of a SweetTok, in a folder or on the Hub."""
    if isinstance(inputs, SizesOnly) and not Path(path, "config.json").is_file():
        return inputs.vtok(path)
    if read_config(path, "VTok", "SweetTok")["model"] == "SweetTok":
        return WordTokens(inputs.tokenizer(path).requires_grad_(False), unit)
    return inputs.vtok(path)


def open_texts(inputs: Inputs, source: str, data: AnnotatedDataConfig) -> AnnotatedClips:
    """Clips of a list with the texts that stand beside it."""
    try:
        return load_annotated(source, data.root)
    except (OSError, ValueError) as error:
        if inputs.readable:
            raise
        inputs.notes.append(f"epochs are unknown: {str(error).splitlines()[0]}")
        return AnnotatedClips(ClipList((), None, None, ()), (), ())


def layout_of(inputs: Inputs, source: Any, frames: int, fps: float) -> Layout:
    """The layout of the tokens of clips that are not read."""
    if isinstance(source, WordTokens):
        layout = source.tokenizer.layout
        spatial, temporal = layout.num_spatial, layout.num_temporal
        if source.unit == "words":
            spatial, temporal = layout.spatial.length, layout.length - layout.spatial.length
        return Layout((KEY,) * spatial + (MOTION,) * temporal, 1, source.dim)
    total = source.num_tokens(frames=frames, fps=fps)
    keys = total if source.config.key_frame == "all" else source.config.grid[0] * source.config.grid[1]
    inputs.notes.append(f"clips of {frames} frames at {fps:g} per second: {keys} + {total - keys} tokens")
    rows, columns = source.patches
    return Layout((KEY,) * keys + (MOTION,) * (total - keys), rows * columns, source.dim)


def open_language(inputs: Inputs, config: LanguageConfig, texts: Iterable[str]) -> VideoLanguageModel:
    """A new language model, around `config.base`, or from scratch with a tokenizer trained on `texts`."""
    if config.base is None:
        texts = list(texts)
        if not texts and not inputs.readable:
            inputs.notes.append("texts are unknown: a vocabulary of 260 assumed")
            texts = ["x"]
        return VideoLanguageModel.from_scratch(config, texts)
    if inputs.readable:
        return VideoLanguageModel.from_base(config)
    tokenizer = train_tokenizer(["x"], 260)
    with _disable_current_modes(), torch.device("meta"):  # which, unlike FakeTensorMode, can convert modules in place
        model = build_model(language_model(config.base), torch.float32)
        found = VideoLanguageModel(replace(config, template=TemplateConfig()), model, tokenizer)
    return without_values(found, getattr(torch, config.dtype))


def without_values(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with all tensors made anew in the current mode, frozen weights as `dtype`."""
    made: dict[int, Tensor] = {}  # shared weights stay shared
    for part in model.modules():
        for name, param in part._parameters.items():
            if param is not None and id(param) not in made:
                kind = param.dtype if param.requires_grad else dtype
                made[id(param)] = nn.Parameter(torch.empty(param.shape, dtype=kind), param.requires_grad)
            part._parameters[name] = None if param is None else made[id(param)]
        for name, value in part._buffers.items():
            part._buffers[name] = None if value is None else torch.empty(value.shape, dtype=value.dtype)
    return model


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
