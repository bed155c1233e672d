"""VTok: one key frame, and one token for each other moment (arXiv 2602.04202).

    key frame    -> frozen image encoder F -> average to the grid -----------> S tokens
    other frames -> F(frame) - F(key frame) -> average, g (one token each) --> T - 1 tokens

Letters: B clips, T sampled frames, H W pixels, S tokens of the key frame, L = S + T - 1 tokens, P patches, C channels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sweettok.config import to_dict
from sweettok.hub import Pretrained
from sweettok.pixels import as_clips
from sweettok.video.clips import Source
from sweettok.vtok.card import CARD
from sweettok.vtok.config import VTokConfig, check_fps
from sweettok.vtok.encoder import architecture, build_encoder
from sweettok.vtok.moments import KeyFrame, Moments, features
from sweettok.vtok.output import FrameFeatures, VisualTokens
from sweettok.vtok.projection import Projection

if TYPE_CHECKING:
    from typing_extensions import Self

Video = Tensor | str | Path  # a single one
# Settings that the features do not depend on, or only through the weights.
NOT_HASHED = ("encoder", "pretrained", "projection", "projection_hidden", "motion_grid")


class VTok(Pretrained):
    """The tokenizer. Its encoder is frozen; `projection` (g) can be trained through `project`.

    Args:
        config: sizes and recipe.
        load: give the encoder the weights of `config.pretrained`, which may download them; otherwise it is random, or
            as in `sizes`.
        sizes: of the encoder, by default those of `config`; they are saved with the model.
    """

    config_class = VTokConfig
    card_info = CARD

    def __init__(self, config: VTokConfig, load: bool = True, sizes: dict[str, Any] | None = None):
        super().__init__()
        self.config, self.sizes = config, architecture(config) if sizes is None else sizes
        self.encoder = build_encoder(config, self.sizes, load)
        self.dim = self.encoder.dim  # C
        for name, grid in (("grid", config.grid), ("motion_grid", config.motion_grid or (1, 1))):
            if grid[0] > self.encoder.grid[0] or grid[1] > self.encoder.grid[1]:
                sizes = " is finer than the encoder's features, ".join(f"{r}x{c}" for r, c in (grid, self.encoder.grid))
                raise ValueError(f"vtok.{name} {sizes}")
        rows, columns = self.patches
        hidden = config.projection_hidden or self.dim
        self.projection = Projection(config.projection, self.dim, hidden, rows * columns)

    def forward(self, video: Tensor, fps: float) -> VisualTokens:
        """As `encode`, with gradients to `projection`."""
        return self.project(self.features(video, fps))

    @torch.no_grad()
    def encode(self, source: Source, fps: float | None = None, **options: Any) -> VisualTokens:
        """Videos -> tokens (B, L, C), on this model's device.

        Args:
            source: clips (B, 3, T, H, W), uint8 or float in [-0.5, 0.5], of any size; images (B, 3, H, W); a path, of
                which all frames are read; or a list of paths, as one batch.
            fps: frames per second; needed for tensors. Default: that of each file.
            options: of `features`.

        Raises ValueError for shapes, types and values that do not fit, for an unknown rate, for clips shorter than one
        motion token, for clips of different length in one list, and for files that cannot be read (ClipError).
        """
        return self.project(self.features(source, fps, **options))

    @torch.no_grad()
    def features(
        self, source: Source, fps: float | None = None, *, key_frame: KeyFrame | None = None, **options: Any
    ) -> FrameFeatures:
        """Videos -> what the frozen encoder gives of them, for `project`; arguments and errors as in `encode`.

        Args:
            key_frame: instead of `config.key_frame`; also a function of the pooled features (T, S, C) of a clip.
            options: resize, stride and max_frames (after the stride) of files and tensors, by default those of
                `config.preprocessing` and all; batch_size, the frames that are encoded together.
        """
        if isinstance(source, list | tuple):
            if not source:
                raise ValueError("a list must hold paths, at least one; got an empty list")
            return FrameFeatures.stack([self.features(path, fps, key_frame=key_frame, **options) for path in source])
        source = as_clips(source)
        alone = self._key_frame(key_frame) == "medoid" or callable(key_frame) or self.config.segment_threshold
        if alone and isinstance(source, Tensor) and len(source) > 1:  # the key frames of clips may differ
            parts = [self.features(clip, fps, key_frame=key_frame, **options) for clip in source.split(1)]
            return FrameFeatures.stack(parts)
        return FrameFeatures.join(list(self._parts(source, fps, key_frame, **options)))

    def stream(
        self,
        source: Tensor | str | Path,
        fps: float | None = None,
        *,
        key_frame: KeyFrame | None = None,
        **options: Any,
    ) -> Iterator[VisualTokens]:
        """A video of any length -> its tokens in consecutive parts; `VisualTokens.join` gives those of `encode`.

        Memory does not grow with the length, except with the key frame "medoid" or a function, which need the pooled
        features of all sampled frames. Other key frames than the first need the video read twice. Arguments and errors
        are those of `features`, for a single video.
        """
        if isinstance(source, list | tuple) or (isinstance(source, Tensor) and source.ndim == 5 and len(source) > 1):
            raise ValueError("stream takes a single video: a path or a tensor (1, 3, T, H, W); use encode for several")
        for part in self._parts(source, fps, key_frame, **options):
            with torch.no_grad():
                yield self.project(part)

    def moments(
        self,
        source: Video,
        fps: float | None = None,
        *,
        resize: str | None = None,
        stride: int | None = None,
        **options: Any,
    ) -> Moments:
        """The sampled frames of a single video; arguments and errors as in `features`."""
        how = self.config.preprocessing.override(resize=resize, stride=stride)
        return Moments(source, fps, self.config, self.encoder, how, **options)

    def moment_features(self, moments: Moments, key_frame: KeyFrame | None = None) -> Iterator[FrameFeatures]:
        """Features of sampled frames, in consecutive parts."""
        if self.config.segment_threshold and key_frame not in (None, "first"):
            raise ValueError(f"with segments the key frame is the first of each segment; got {key_frame!r}")
        return features(moments, self._key_frame(key_frame), self.patches)

    def project(self, features: FrameFeatures) -> VisualTokens:
        """Features, computed now or stored -> tokens, with gradients to `projection`."""
        motion = self.projection(features.residuals).float()
        order = features.kinds.argsort(stable=True).argsort()
        values = torch.cat((features.key, motion), dim=1)[:, order]
        return VisualTokens(values, features.times, features.kinds, features.key_frame)

    def num_tokens(self, *, seconds: float | None = None, frames: int | None = None, fps: float = 24.0) -> int:
        """L of a video of so many frames, or of the frames from 0 to `seconds`, both included; fps as in the paper.

        With segments, of a single one. Raises ValueError for a video that is shorter than one motion token.
        """
        if (seconds is None) == (frames is None):
            raise ValueError(f"give either seconds or frames; got seconds={seconds}, frames={frames}")
        check_fps(fps)
        if frames is None:
            if not 0 <= seconds < float("inf"):
                raise ValueError(f"seconds must be at least 0; got {seconds}")
            frames = int(seconds * fps + 1e-6) + 1
        if frames < 1:
            raise ValueError(f"frames must be at least 1; got {frames}")
        stride = self.config.preprocessing.stride
        rows, columns = self.config.grid
        moments = self.config.num_moments(-(-frames // stride), fps / stride)
        return rows * columns * moments if self.config.key_frame == "all" else rows * columns + moments - 1

    @property
    def patches(self) -> tuple[int, int]:
        """Grid to which differences are averaged before `projection`; it has P places."""
        return (self.config.motion_grid or self.encoder.grid) if self.config.projection == "patch_mlp" else (1, 1)

    @property
    def device(self) -> torch.device:
        """Where the weights are; inputs are moved there."""
        return self.encoder.mean.device

    def features_hash(self) -> str:
        """SHA-256 of all weights and settings that `features` depends on; `projection` is left out."""
        settings = {name: value for name, value in to_dict(self.config).items() if name not in NOT_HASHED}
        settings |= {"patches": self.patches, "architecture": self.sizes}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, tensor in sorted(self.encoder.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def assets(self) -> dict[str, Any]:
        """The sizes of the encoder, so that a saved model needs no registry of names."""
        return {"architecture": self.sizes}

    @classmethod
    def build(cls, config: VTokConfig, assets: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """A model with the encoder of a saved one, without downloads."""
        return cls(config, load=False, sizes=assets["architecture"])

    def _key_frame(self, key_frame: KeyFrame | None) -> KeyFrame:
        return self.config.key_frame if key_frame is None else key_frame

    @torch.no_grad()
    def _parts(
        self,
        source: Video,
        fps: float | None,
        key_frame: KeyFrame | None,
        **options: Any,
    ) -> Iterator[FrameFeatures]:
        yield from self.moment_features(self.moments(source, fps, **options), key_frame)
