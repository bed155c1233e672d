"""The frozen image encoder of VTok: patch features of one block of a model of open_clip."""

from __future__ import annotations

import difflib
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sweettok.priors.vectors import load_clip
from sweettok.vtok.config import VTokConfig

# open_clip builds the text encoder too, which is not used here: as small as possible.
TEXT = {"width": 8, "heads": 1, "layers": 1, "vocab_size": 8, "context_length": 4}


class FrameEncoder(nn.Module):
    """Frames -> patch features, without gradients.

    Args:
        visual: image encoder of open_clip, with `forward_intermediates`.
        mean, std: of the pixels of its training images, in [0, 1].
        block: whose output is taken; negative: from the end.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, visual: Any, mean: tuple[float, ...], std: tuple[float, ...], block: int):
        super().__init__()
        self.visual, self.block = visual.eval().requires_grad_(False), block
        size = visual.image_size
        self.size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):
                shape = self(torch.empty(1, 3, *self.size)).shape
        except AssertionError as error:
            raise ValueError(f"vtok.block {block} is not a block of this encoder: {error}") from error
        self.dim, self.grid = shape[1], (shape[2], shape[3])

    def train(self, mode: bool = True) -> FrameEncoder:
        """Stays in evaluation mode: it is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, *size), float in [-0.5, 0.5] -> float32 features (N, C, rows, columns)."""
        pixels = (frames + 0.5 - self.mean) / self.std
        found = self.visual.forward_intermediates(
            pixels, indices=[self.block], stop_early=True, intermediates_only=True, output_fmt="NCHW"
        )
        return found["image_intermediates"][0].float()


def architecture(config: VTokConfig) -> dict[str, Any]:
    """Sizes of the image encoder, as in open_clip's JSON files. Raises ValueError for unknown models."""
    import open_clip

    sizes = config.architecture
    if not sizes:
        try:
            sizes = open_clip.get_model_config(config.encoder)
        except (OSError, RuntimeError) as error:
            raise OSError(f"{config.encoder}: its configuration cannot be read: {error}") from error
    if sizes is None:
        near = difflib.get_close_matches(config.encoder, open_clip.list_models(), 3, 0.5)
        advice = f"did you mean {' or '.join(near)}?" if near else "see open_clip.list_models()"
        raise ValueError(f"open_clip has no model {config.encoder!r}: {advice}")
    if missing := {"embed_dim", "vision_cfg"} - sizes.keys():
        raise ValueError(f"vtok.architecture lacks {' and '.join(sorted(missing))}: give a model of open_clip's JSON")
    vision = {**sizes["vision_cfg"]}
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    return {"embed_dim": sizes["embed_dim"], "vision_cfg": vision, "quick_gelu": sizes.get("quick_gelu", False)}


def build_encoder(config: VTokConfig, sizes: dict[str, Any], load: bool = True) -> FrameEncoder:
    """The encoder with these sizes; with `load` and `config.pretrained` it has its weights, else random ones.

    Raises ValueError for sizes, names and files that do not fit, OSError if weights cannot be downloaded.
    """
    import open_clip

    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    if load and config.pretrained is not None and not config.architecture:
        visual = load_clip(config.encoder, config.pretrained).visual
        mean, std = visual.preprocess_cfg["mean"], visual.preprocess_cfg["std"]
    else:
        try:
            visual = open_clip.CLIP(**sizes, text_cfg=TEXT).visual
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise ValueError(f"vtok.architecture is not that of an image encoder of open_clip: {error}") from error
        if load and config.pretrained is not None:
            load_weights(visual, config.pretrained)
    return FrameEncoder(visual, mean, std, config.block)


def load_weights(visual: nn.Module, path: str | Path) -> None:
    """Copy the image encoder's weights of a CLIP model, a safetensors file with names "...visual.NAME"."""
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} holds no weights: {error}; expected a safetensors file") from error
    state = {name.split("visual.", 1)[1]: tensor for name, tensor in state.items() if "visual." in name}
    if not state:
        raise ValueError(f"{path} holds no image encoder: expected weights of CLIP, visual.conv1.weight, ...")
    try:
        visual.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit vtok.architecture: {shorten(str(error), 300)}") from error
