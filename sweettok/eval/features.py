"""Feature extractors, which turn clips into the feature vectors that a Frechet distance compares.

To add one, implement `FeatureExtractor` and add its constructor to `EXTRACTORS`; a protocol selects it with `detector`.

Letters: N clips, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol as Interface

import numpy as np
import torch
from torch import Tensor

from sweettok.data.lists import some
from sweettok.eval.i3d import I3D, MIN_FRAMES, NUM_CLASSES, ScriptedI3D, preprocess
from sweettok.eval.protocol import Protocol
from sweettok.pixels import to_float, to_uint8

I3D_FILE = "i3d_pretrained_400.pt"


class FeatureExtractor(Interface):
    """width: length of a feature vector. min_frames: least number of frames of a clip."""

    width: int
    min_frames: int

    def to(self, device: torch.device) -> FeatureExtractor: ...

    def __call__(self, frames: Tensor) -> Tensor:
        """RGB frames (N, T, H, W, 3), uint8 or float in [0, 255] -> float (N, width)."""


class I3DFeatures:
    """The 400 class scores of I3D, averaged over time. resize: as in `preprocess`, or "inside" (TorchScript file)."""

    width, min_frames = NUM_CLASSES, MIN_FRAMES

    def __init__(self, model: I3D | ScriptedI3D, resize: str, antialias: bool):
        self.model, self.resize, self.antialias = model, resize, antialias

    def to(self, device: torch.device) -> I3DFeatures:
        self.model = self.model.to(device)
        return self

    def __call__(self, frames: Tensor) -> Tensor:
        if self.resize == "inside":
            return self.model.scores(frames.movedim(-1, 1), inside=True)
        return self.model.scores(preprocess(frames, self.resize, self.antialias))


def _i3d(path: str | Path, protocol: Protocol) -> I3DFeatures:
    if protocol.batch_norm_eps is None or protocol.detector_resize == "inside":
        raise ValueError(f"the detector {protocol.detector} needs batch_norm_eps, and cannot resize 'inside'")
    model = I3D.from_release(path, protocol.batch_norm_eps)
    return I3DFeatures(model, protocol.detector_resize, protocol.detector_antialias)


def _scripted_i3d(path: str | Path, protocol: Protocol) -> I3DFeatures:
    if protocol.batch_norm_eps is not None:
        raise ValueError(f"the detector {protocol.detector} contains its epsilon: batch_norm_eps must be none")
    return I3DFeatures(ScriptedI3D.load(path), protocol.detector_resize, protocol.detector_antialias)


EXTRACTORS: dict[str, Callable[[str | Path, Protocol], FeatureExtractor]] = {
    "i3d-logits": _i3d,
    "i3d-torchscript": _scripted_i3d,
}


def load_extractor(path: str | Path | None, protocol: Protocol) -> FeatureExtractor | None:
    """The extractor of a protocol with the weights at `path`, on the CPU; None if `path` is None.

    Raises FileNotFoundError, or ValueError for an unknown detector or other weights.
    """
    if protocol.detector not in EXTRACTORS:
        raise ValueError(f"no detector {protocol.detector!r}; there are {', '.join(EXTRACTORS)}")
    return EXTRACTORS[protocol.detector](path, protocol) if path is not None else None


def find_i3d(path: str | Path | None) -> Path | None:
    """`path`, or by default the published file if torch's cache has it; nothing is downloaded."""
    if path is not None:
        return Path(path)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / I3D_FILE
    return cached if cached.is_file() else None


def clip_features(extractor: FeatureExtractor, frames: Tensor, keys: Sequence[str]) -> list[np.ndarray]:
    """Features of each clip, float64 (D,). ValueError with the `keys` of clips whose features are not finite."""
    features = extractor(frames).detach().to("cpu", torch.float64)
    broken = [key for key, row in zip(keys, features, strict=True) if not row.isfinite().all()]
    if broken:
        raise ValueError(f"features are not finite of {len(broken)} clips{some(broken)}")
    return list(features.numpy())


def detector_frames(video: Tensor, protocol: Protocol, fake: bool) -> Tensor:
    """Clips (N, 3, T, H, W), uint8 or float in [-0.5, 0.5] -> the detector's input (N, T, H, W, 3).

    The result is uint8, or float32 in [0, 255] if the protocol does not quantize. Raises ValueError if values to be
    quantized are outside of the range and the protocol does not clamp them.
    """
    if not protocol.count_given:
        video = video[:, :, protocol.given_frames :]
    if video.dtype == torch.uint8 and protocol.range == "unit":
        frames = video if protocol.quantize != "none" else video.float()
        return frames.movedim(1, -1)
    values = to_float(video) if video.dtype == torch.uint8 else video.float()
    clamp = protocol.clamp == "both" or (protocol.clamp == "fake" and fake)
    if protocol.quantize == "none":
        values = values.clamp(-0.5, 0.5) if clamp else values
        return ((values + 0.5) * 255).movedim(1, -1)
    if not clamp and values.abs().max() > 0.5:
        reach = f"{values.abs().max():.3g}"
        raise ValueError(f"values reach {reach}, outside of [-0.5, 0.5]: to quantize them, set clamp to both or fake")
    return to_uint8(values, {"round": "nearest", "floor": "floor"}[protocol.quantize]).movedim(1, -1)
