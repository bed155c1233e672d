"""The protocol of a measurement: every choice that a Frechet distance depends on, in one frozen object.

A preset leaves open (None) what only the run can tell; `python -m sweettok.eval` fills it in, and its report carries
the filled object and its hash. Numbers of different protocols must not be compared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sweettok.data.reader import POSITIONS, SHORT
from sweettok.data.resize import RESIZES

CHOICES = {
    "selection": ("first", "seeded"),
    "position": tuple(position for position in POSITIONS if position != "even"),
    "short": SHORT,
    "resize": RESIZES,
    "resize_filter": ("decoder", "bilinear", "antialias"),
    "range": ("unit", "centred"),
    "quantize": ("round", "floor", "none"),
    "clamp": ("both", "fake", "none"),
    "autocast": ("float32", "bfloat16", "float16"),
    "detector_resize": ("stretch", "crop", "inside"),
    "ddof": (0, 1),
    "root": ("svd", "sqrtm"),
    "dtype": ("float64", "float32"),
}
LEAST = {
    "num_real": 1, "num_fake": 1, "frames": 1, "stride": 1, "height": 1, "width": 1, "given_frames": 0, "seed": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Protocol:
    """How two sets of clips are measured. None: the run fills it in.

    Which clips
        split: what the list of real clips is meant to be, in words; real_list is its SHA-256.
        num_real, num_fake: how many of each side, taken as `selection` says: the first ones, or by `seed`.
        paired: whether real clip i is the original of fake clip i.
    Which frames
        frames, stride, position, short: as in `read_clip`; `seed` also draws random positions.
        given_frames: frames that a prediction was given; count_given: whether they are scored too.
    Which pixels, of both sides alike
        height, width: of the clips; None keeps the tokenizer's size, or that of the files. resize: as in `read_clip`;
        resize_filter: the video decoder's bilinear filter, or torch's, plain or with antialiasing.
        range: what values pass through on their way to the detector: "unit" [0, 1], or the model's "centred"
        [-0.5, 0.5], after which floor lowers the levels 1..63 of real frames by one.
        quantize: how values become bytes, if they do. clamp: whose values are cut to the range before; others must be
        inside it, or stay as they are where there are no bytes.
        codec: of the files that fake clips were read from; "none" for pixels that no codec has touched.
    Which model
        weights, quantizer: of the tokenizer, in words. autocast: its arithmetic. tf32: whether matrix products may
        round to TF32, where the device can.
    Which features
        detector: see `sweettok.eval.features`; detector_file: its SHA-256. batch_norm_eps: of I3D, None for a detector
        that holds its own. detector_resize: to the detector's size, see `preprocess`, or "inside" a TorchScript
        detector; detector_antialias: in doing so.
    Which distance
        ddof, root, dtype: see `frechet_distance`.

    Raises ValueError for a value that is not among those a field can take.
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
    stride: int = 1
    position: str = "center"
    short: str = "error"
    given_frames: int = 0
    count_given: bool = True
    height: int | None = None
    width: int | None = None
    resize: str = "stretch"
    resize_filter: str = "decoder"
    range: str = "unit"
    quantize: str = "round"
    clamp: str = "both"
    codec: str = "none"
    weights: str = "ema"
    quantizer: str = "deterministic"
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
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}; got {getattr(self, name)!r}")
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
        """Frames that reach the detector."""
        return self.frames if self.frames is None or self.count_given else self.frames - self.given_frames

    @property
    def hash(self) -> str:
        """SHA-256 of every field."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def filled(self, **values: Any) -> Protocol:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **values)

    def changed(self, settings: list[str] | tuple[str, ...]) -> Protocol:
        """A copy with fields replaced by `field=value` settings, and named after them; ValueError for unknown ones."""
        fields = {field.name: field.type for field in dataclasses.fields(self) if field.name != "name"}
        values = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals or name not in fields:
                raise ValueError(f"a setting is FIELD=VALUE, with FIELD one of {', '.join(fields)}; got {setting!r}")
            values[name] = _parsed(name, text, fields[name])
        changed = [f"{name}={value}" for name, value in values.items() if value != getattr(self, name)]
        return self.filled(name=" ".join([self.name, *changed]), **values) if changed else self


def differing_fields(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of the fields in which two protocols, as plain data, are not the same."""
    return [name for name in {**one, **other} if name not in one or name not in other or one[name] != other[name]]


def _parsed(name: str, text: str, kind: str) -> Any:
    """The value that `text` stands for, of a field annotated as `kind`."""
    if text.lower() in ("none", "null") and "None" in kind:
        return None
    kind = kind.removesuffix(" | None")
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        return {"int": int, "float": float, "str": str}[kind](text)
    except (ValueError, KeyError):
        raise ValueError(f"{name} takes a {kind}, got {text!r}") from None
