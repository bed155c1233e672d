"""What a language model is saved with: the tokenizer it reads, and the video decoder that its states are for.

Small parts are saved inside the model. Frozen ones that are published elsewhere, such as an image encoder of open_clip
or a video model of diffusers, are named, and opened when they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import sweettok
from sweettok import config as configs
from sweettok.config import choice, positive, whole
from sweettok.hub import Pretrained
from sweettok.vtok.adapter import AdaptedDecoder
from sweettok.vtok.flow import VideoDecoder
from sweettok.vtok.hunyuan import Hunyuan15Decoder, HunyuanDecoder
from sweettok.vtok.model import VTok
from sweettok.vtok.sources import UNITS, VisualSource, WordTokens
from sweettok.vtok.wan import WanDecoder

PUBLISHED = {"hunyuan": HunyuanDecoder, "hunyuan15": Hunyuan15Decoder, "wan": WanDecoder}
KINDS = ("none", "pixels", *PUBLISHED)
CLASSES = ("VTok", "SweetTok", "StateAdapter", "PixelFlow")  # that are saved inside


@dataclass(frozen=True)
class DecoderConfig:
    """The frozen video decoder, and the clips that it makes."""

    # "none"; "pixels", a decoder of ours; or a model of diffusers: "hunyuan" (HunyuanVideo), "hunyuan15"
    # (HunyuanVideo-1.5), "wan" (Wan 2.1 or 2.2).
    kind: str = "none"
    path: str | None = None  # its folder, or its repository of the Hub
    # A trained network between the states and the decoder: null, none, for a decoder that was trained on states of this
    # language model; else the root mean square of the states that the decoder was trained on.
    adapter_rms: float | None = None
    adapter_hidden: int | None = None  # hidden width of this network; null: the larger one of both states
    every: int = 1  # its loss is part of every so many steps
    dtype: str = "float32"  # of a model of diffusers: "float32" or "bfloat16"
    height: int = 64  # height of its clips in pixels
    width: int = 64  # width of its clips in pixels
    fps: float = 24.0  # frames per second of its clips

    def __post_init__(self) -> None:
        choice("decoder.kind", self.kind, KINDS)
        choice("decoder.dtype", self.dtype, ("float32", "bfloat16"))
        whole(self, "decoder", 1, "every", "height", "width", "adapter_hidden")
        positive(self, "decoder", "adapter_rms", "fps")
        if (self.kind == "none") != (self.path is None):
            raise ValueError(f"decoder.kind {self.kind} and decoder.path {self.path} do not go together: set both")

    def open(self, **options: Any) -> VideoDecoder:
        """A decoder of diffusers; `options` as of its class."""
        return PUBLISHED[self.kind].from_pretrained(self.path, dtype=getattr(torch, self.dtype), **options)


def describe(part: Pretrained) -> dict[str, Any]:
    """JSON data to build a part again."""
    return {"class": type(part).__name__, "config": configs.to_dict(part.config), "assets": part.assets()}


def rebuild(about: Mapping[str, Any], tensors: dict[str, Tensor]) -> Pretrained:
    """The part that `describe` described, with random weights unless they are published elsewhere."""
    if about["class"] not in CLASSES:
        raise ValueError(f"this version has no part {about['class']!r}; it has {', '.join(CLASSES)}")
    cls: type[Pretrained] = getattr(sweettok, about["class"])
    config = configs.build(cls.config_class, about["config"])
    if cls is VTok and names_weights(config):
        return VTok(config, sizes=about["assets"]["architecture"])
    return cls.build(config, about["assets"], tensors)


def names_weights(config: Any) -> bool:
    """Whether the encoder of a VTok has published weights, which need not be saved."""
    return config.pretrained is not None and not config.architecture and "/" not in config.pretrained


class Parts(nn.ModuleDict):
    """The parts of a language model, any of: "tokenizer", "adapter", "decoder". All but the adapter are frozen.

    Attributes:
        settings: of the decoder.
        unit: of the tokens, if the tokenizer is a SweetTok.
        frames: of a clip in training.
    """

    def __init__(
        self, settings: DecoderConfig | None = None, unit: str = UNITS[-1], frames: int = 1, **parts: Pretrained | None
    ):
        super().__init__({name: part for name, part in parts.items() if part is not None})
        self.settings, self.unit, self.frames = settings or DecoderConfig(), unit, frames
        self.opened: tuple[VideoDecoder, ...] = ()  # the published decoder, once it is loaded; it is no part
        for name in self.keys() - {"adapter"}:
            self[name].requires_grad_(False)

    def train(self, mode: bool = True) -> Parts:
        """Frozen parts stay in evaluation mode."""
        for name, part in self.items():
            part.train(mode and name == "adapter")
        return self

    def source(self) -> VisualSource | None:
        """What makes tokens of a video, or None."""
        if "tokenizer" not in self:
            return None
        tokenizer: Any = self["tokenizer"]
        return tokenizer if isinstance(tokenizer, VTok) else WordTokens(tokenizer, self.unit)

    def open_decoder(self, device: torch.device | str = "cpu") -> VideoDecoder:
        """The video decoder on a device; one of diffusers is loaded at the first call.

        Raises ValueError for a model that was trained without one.
        """
        if self.settings.kind == "none":
            raise ValueError("this model was trained without a video decoder: train it with decoder.kind and path")
        if "decoder" not in self and not self.opened:
            self.opened = (self.settings.open(),)
        found: Any = self["decoder"] if "decoder" in self else self.opened[0]
        found = found.to(device)
        return AdaptedDecoder(self["adapter"], found) if "adapter" in self else found

    def left_out(self) -> set[str]:
        """Names of parameters that are not saved."""
        tokenizer = dict(self.items()).get("tokenizer")
        if not isinstance(tokenizer, VTok) or not names_weights(tokenizer.config):
            return set()
        return {f"tokenizer.encoder.visual.{name}" for name, _ in tokenizer.encoder.visual.named_parameters()}

    def to_dict(self) -> dict[str, Any]:
        """JSON data for `from_dict`."""
        parts = {name: describe(part) for name, part in self.items()}
        return {"parts": parts, "decoder": asdict(self.settings), "unit": self.unit, "frames": self.frames}

    @classmethod
    def from_dict(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Parts:
        """The parts that `to_dict` described; `tensors` begin with their names."""
        parts = {}
        for name, part in about["parts"].items():
            own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
            parts[name] = rebuild(part, own)
        return cls(configs.build(DecoderConfig, about["decoder"]), about["unit"], about["frames"], **parts)
