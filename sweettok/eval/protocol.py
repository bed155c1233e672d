"""Protocols: all settings that a Frechet distance depends on, and presets for published numbers.

Fields that depend on the data and the model are None in a preset. The evaluation sets them, and its report contains the
complete protocol and its hash. Numbers of different protocols must not be compared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

VERSION = 3  # increase when a field or its meaning changes; part of the hash
CHOICES = {
    "selection": ("first", "seeded"),
    "position": ("first", "center", "last", "random"),
    "short": ("black", "repeat", "error"),
    "resize": ("stretch", "crop", "pad"),
    "resize_filter": ("decoder", "antialias"),
    "range": ("unit", "centred"),
    "quantize": ("round", "floor", "none"),
    "clamp": ("both", "fake", "none"),
    "autocast": ("float32", "bfloat16", "float16"),
    "detector_resize": ("stretch", "crop", "inside"),
    "ddof": (0, 1),
    "root": ("svd", "sqrtm"),
    "dtype": ("float64", "float32"),
}
LEAST = {"given_frames": 0, "seed": 0, "num_real": 1, "num_fake": 1, "frames": 1, "stride": 1, "height": 1, "width": 1}
PREPROCESSING = ("resize", "position", "stride")  # by default as in the model's `Preprocessing`


@dataclass(frozen=True)
class Protocol:
    """How two sets of clips are compared. Fields that are None are set by the evaluation.

    Args:
        name: name of the preset, followed by the settings that were changed.
        split: description of the real clips.
        real_list: SHA-256 of the list of real clips.
        num_real, num_fake: number of clips of each side.
        selection: which of more clips are used, the "first" or a random subset ("seeded", by `seed`).
        paired: whether fake clip i is the reconstruction of real clip i.
        frames, stride, position, short: frames of a clip, as in `read_clip`; `seed` also determines random positions.
        given_frames: number of frames that a prediction was conditioned on; count_given: whether they are scored too.
        height, width: size of the clips in pixels; None for the size of the tokenizer or of the files.
        resize: "stretch", "crop" or "pad", as in `Preprocessing`.
        resize_filter: "decoder" resizes in the video decoder (bilinear), "antialias" in torch (antialiased bilinear).
        range: value range before quantization, "unit" [0, 1], or the model's "centred" [-0.5, 0.5], with which
            `quantize="floor"` lowers the levels 1 to 63 of real frames by one.
        quantize: rounding to bytes. clamp: which side is clamped to the range before.
        codec: codec of the files of fake clips; "none" for decoded tokens.
        autocast: dtype of the tokenizer's autocast. tf32: whether matrix products may use TF32.
        detector: feature extractor, see `sweettok.eval.features`; detector_file: SHA-256 of its weights.
        batch_norm_eps: epsilon of I3D; None for a detector that contains it.
        detector_resize: resizing to the detector's input, as in `preprocess`, or "inside" a TorchScript detector;
        detector_antialias: whether this resizing is antialiased.
        ddof, root, dtype: as in `frechet_distance`.

    Raises:
        ValueError: a value is not allowed for its field.
    """

    name: str
    split: str = "any"
    real_list: str | None = None
    num_real: int | None = None
    num_fake: int | None = None
    selection: str = "first"
    seed: int = 0
    paired: bool | None = None
    frames: int | None = None
    stride: int | None = None
    position: str | None = None
    short: str = "error"
    given_frames: int = 0
    count_given: bool = True
    height: int | None = None
    width: int | None = None
    resize: str | None = None
    resize_filter: str = "decoder"
    range: str = "unit"
    quantize: str = "round"
    clamp: str = "both"
    codec: str = "none"
    autocast: str = "float32"
    tf32: bool = False
    detector: str = "i3d-logits"
    detector_file: str | None = None
    batch_norm_eps: float | None = 1e-5
    detector_resize: str = "stretch"
    detector_antialias: bool = False
    ddof: int = 1
    root: str = "svd"
    dtype: str = "float64"

    def __post_init__(self):
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed and not (value is None and name in PREPROCESSING):
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}; got {value!r}")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if (self.height is None) != (self.width is None):
            raise ValueError(f"give height and width, or neither; got {self.height} and {self.width}")
        if self.frames is not None and self.given_frames >= self.frames:
            raise ValueError(f"given_frames must be fewer than the {self.frames} frames, got {self.given_frames}")
        if self.batch_norm_eps is not None and not self.batch_norm_eps > 0:
            raise ValueError(f"batch_norm_eps must be above 0, got {self.batch_norm_eps}")

    @property
    def size(self) -> tuple[int, int] | None:
        return (self.height, self.width) if self.height is not None else None

    @property
    def scored_frames(self) -> int | None:
        """Number of frames that the detector receives."""
        return self.frames if self.frames is None or self.count_given else self.frames - self.given_frames

    @property
    def hash(self) -> str:
        """SHA-256 of VERSION and every field."""
        return hashlib.sha256(json.dumps([VERSION, self.to_dict()], sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def filled(self, **values: Any) -> Protocol:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **values)

    def completed(self, preprocessing: Any) -> Protocol:
        """A copy whose fields of PREPROCESSING that are None are set from a model's `Preprocessing`."""
        return self.filled(**{n: getattr(preprocessing, n) for n in PREPROCESSING if getattr(self, n) is None})

    def changed(self, settings: Sequence[str]) -> Protocol:
        """A copy with `field=value` settings applied and added to its name. ValueError for an unknown setting."""
        fields = {field.name: field.type for field in dataclasses.fields(self) if field.name != "name"}
        values = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals or name not in fields:
                raise ValueError(f"a setting is FIELD=VALUE, with FIELD one of {', '.join(fields)}; got {setting!r}")
            values[name] = _parse(name, text, fields[name])
        changed = [f"{name}={value}" for name, value in values.items() if value != getattr(self, name)]
        return self.filled(name=" ".join([self.name, *changed]), **values) if changed else self


def _parse(name: str, text: str, kind: str) -> Any:
    """Convert text to the type of a field, given as its annotation."""
    if text.lower() in ("none", "null") and "None" in kind:
        return None
    kind = kind.removesuffix(" | None")
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        return {"int": int, "float": float, "str": str}[kind](text)
    except (ValueError, KeyError):
        raise ValueError(f"{name} takes a {kind}, got {text!r}") from None


# Clips as in the model's configuration, no resizing but to the detector's input, antialiasing, rounding, float64, and
# the epsilon that the network was trained with.
_EXACT = Protocol(name="exact", batch_norm_eps=1e-3, detector_antialias=True)

# Frechet distance on EfficientNet-Lite0's features, whose weights are in a package: not comparable with FVD.
_EFFICIENTNET = _EXACT.filled(detector="efficientnet-lite0", batch_norm_eps=None)

# Published evaluations. Choices that they do not fix (seeds, TF32, clips drawn by a training loader) are fixed here.
_PUBLISHED = Protocol(name="", stride=1, position="center", resize="stretch")

# SweetTok and OmniTokenizer: all clips of the validation list, in the model's range, truncated to bytes.
_RFVD = _PUBLISHED.filled(frames=17, height=256, width=256, short="black", range="centred", quantize="floor")
_RFVD = _RFVD.filled(paired=True, dtype="float32", split="UCF-101 test, split 1 (3,783 clips)")

# SweetTok and OmniTokenizer: 2,048 clips per side, generated ones from lossy files. Decoded tokens have no codec; the
# report then has a note.
_GFVD = _PUBLISHED.filled(num_real=2048, num_fake=2048, selection="seeded", paired=False, codec="mp4", frames=17)
_GFVD = _GFVD.filled(height=128, width=128, quantize="floor", detector_resize="crop", dtype="float32")
_GFVD = _GFVD.filled(split="UCF-101 train, split 1")

# Random clips of 16 frames.
_RANDOM = {"num_real": 2048, "num_fake": 2048, "selection": "seeded", "paired": False, "position": "random"}
_RANDOM["frames"] = 16
_TATS = _RFVD.filled(split="UCF-101 train", height=128, width=128, short="error", clamp="fake", **_RANDOM)

# The detector of StyleGAN-V and LARP is a TorchScript file that resizes by itself; its epsilon is not known.
_SCRIPTED = _PUBLISHED.filled(detector="i3d-torchscript", batch_norm_eps=None, detector_resize="inside", ddof=0)
_LARP = _SCRIPTED.filled(split="UCF-101 train", paired=True, frames=16, height=128, width=128, resize="crop")
_LARP = _LARP.filled(resize_filter="antialias", quantize="none")
_K600 = "Kinetics-600 validation"

PRESETS = {
    "exact": _EXACT,
    "efficientnet": _EFFICIENTNET,
    "sweettok-rfvd-ucf101": _RFVD,
    "sweettok-gfvd-ucf101": _GFVD,
    "omnitokenizer-rfvd-ucf101": _RFVD.filled(clamp="fake"),
    "omnitokenizer-rfvd-k600": _RFVD.filled(split=_K600, clamp="fake"),
    "omnitokenizer-gfvd-ucf101": _GFVD,
    "k600-prediction": _GFVD.filled(split=_K600, height=64, width=64, given_frames=5),
    "tats-128": _TATS,
    "stylegan-v": _SCRIPTED.filled(root="sqrtm", **_RANDOM),
    "larp-128": _LARP,
}
PRESETS = {name: protocol.filled(name=name) for name, protocol in PRESETS.items()}
DEFAULT = "exact"


def find_protocol(name: str, settings: Sequence[str] = ()) -> Protocol:
    """The preset `name` with `field=value` settings applied. ValueError for an unknown name or setting."""
    if name not in PRESETS:
        raise ValueError(f"no protocol {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name].changed(settings)
