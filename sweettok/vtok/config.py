"""Settings of VTok; the defaults are the paper's where it states one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, takewhile
from typing import Any

from sweettok.config import choice, positive, whole
from sweettok.data.preprocess import Preprocessing

KEY_FRAMES = ("first", "middle", "medoid", "all")
PROJECTIONS = ("identity", "mlp", "patch_mlp")


@dataclass(frozen=True)
class VTokConfig:
    """VTok: pooled features of one key frame, and one pooled difference to it for each other sampled frame."""

    encoder: str = "ViT-L-14-336-quickgelu"  # frozen image encoder: name of a model of open_clip
    # Its weights: a tag of open_clip, a file of open_clip's weights, or null for random ones.
    pretrained: str | None = "openai"
    # Sizes of a model of your own, as in open_clip's JSON files: embed_dim, vision_cfg, quick_gelu. Empty: those of
    # `encoder`.
    architecture: dict[str, Any] = field(default_factory=dict)
    block: int = -2  # block of the encoder whose patch features are used; negative: from the end
    grid: tuple[int, int] = (4, 4)  # rows and columns of key-frame tokens; features are averaged to this grid
    tokens_per_second: float = 6.0  # rate of sampled frames, at most every frame
    frames_per_token: int | None = None  # instead of tokens_per_second: every so many frames are sampled
    # Key frame: "first", "middle", "medoid" (the sampled frame nearest to the mean of the pooled features), or the
    # index of a sampled frame. "all" is the baseline of the paper: every sampled frame gives the tokens of a key frame.
    key_frame: str | int = "first"
    # From the difference d of the features to a token: "identity", the mean of d over patches; "mlp", pooled d plus an
    # MLP of it; "patch_mlp", the mean over patches of d plus an MLP of d and the patch's position. The last layer of
    # both MLPs starts at zero, so that all three start equal.
    projection: str = "mlp"
    projection_hidden: int | None = None  # hidden width of the MLP; null: that of the encoder
    motion_grid: tuple[int, int] | None = None  # of patch_mlp: d is first averaged to this grid; null: not averaged
    # Open a new key frame where the norm of the difference of the pooled features, divided by that of the key frame's
    # features, is above this; null: never (paper).
    segment_threshold: float | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)  # resize and stride of files and tensors

    def __post_init__(self) -> None:
        for name in ("grid", "motion_grid"):
            grid = getattr(self, name)
            if grid is None:
                continue
            if isinstance(grid, int) or len(grid) != 2 or not all(isinstance(edge, int) and edge > 0 for edge in grid):
                raise ValueError(f"vtok.{name} must be two whole numbers, rows and columns; got {grid}")
            object.__setattr__(self, name, tuple(grid))
        positive(self, "vtok", "tokens_per_second", "segment_threshold")
        whole(self, "vtok", 1, "frames_per_token", "projection_hidden")
        choice("vtok.projection", self.projection, PROJECTIONS)
        if self.motion_grid is not None and self.projection != "patch_mlp":
            raise ValueError(f"vtok.motion_grid is of projection patch_mlp only; got {self.projection}")
        check_key_frame(self.key_frame)
        if self.segment_threshold is not None and self.key_frame != "first":
            raise ValueError(
                f"with vtok.segment_threshold the key frame is the first of each segment; got {self.key_frame!r}"
            )

    def places(self, fps: float | None) -> Iterator[int]:
        """Indices of the sampled frames of an endless video, ascending from 0; of fps frames per second.

        With tokens_per_second, the frame nearest to each moment; of slower videos every frame.
        """
        if self.frames_per_token is not None:
            return count(0, self.frames_per_token)
        if fps is None:
            raise ValueError("fps is unknown: give fps=, or set frames_per_token instead of tokens_per_second")
        check_fps(fps)
        step = max(1.0, fps / self.tokens_per_second)
        return (math.floor(moment * step + 0.5) for moment in count())

    def num_moments(self, num_frames: int, fps: float | None) -> int:
        """Sampled frames, T, of a video. Raises ValueError for one that is shorter than one motion token."""
        found = sum(1 for _ in takewhile(lambda place: place < num_frames, self.places(fps)))
        self.check_moments(found, num_frames, fps)
        return found

    def check_moments(self, found: int, num_frames: int, fps: float | None) -> None:
        """Raise ValueError unless there are motion tokens, or the video is a single frame."""
        if num_frames > 1 and found == 1 and self.key_frame != "all":
            places = self.places(fps)
            least = (next(places), next(places))[1] + 1
            rate = "" if fps is None else f" at {fps:g} frames per second"
            raise ValueError(
                f"a clip of {num_frames} frames{rate} is shorter than one motion token, which takes {least} frames: "
                "give a longer clip, raise the rate of tokens, or give one frame as an image"
            )


def check_key_frame(key_frame: object) -> None:
    """Raise ValueError unless this is a name or an index."""
    if isinstance(key_frame, bool) or (isinstance(key_frame, int) and key_frame < 0) or key_frame is None:
        raise ValueError(f"vtok.key_frame must be one of {', '.join(KEY_FRAMES)} or an index from 0; got {key_frame!r}")
    if isinstance(key_frame, str):
        choice("vtok.key_frame", key_frame, KEY_FRAMES)


def check_fps(fps: float) -> None:
    """Raise ValueError unless this can be a number of frames per second."""
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise ValueError(f"fps must be the number of frames per second, above 0; got {fps!r}")
