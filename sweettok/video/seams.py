"""How much more a decoded long video changes at seams, where one clip fades into the next, than inside clips.

Letters: T frames, H W pixels. Changes are mean absolute differences over pixels and channels, in grey levels of 255.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sweettok.video.chunks import ChunkMap


def seam_metric(video: Tensor, chunks: ChunkMap, reference: Tensor | None = None) -> float:
    """Video (3, T, H, W), uint8 or float in [-0.5, 0.5] -> mean change at seams minus that of all other frame pairs.

    The change at t is mean |video[t + 1] - video[t]|, less that of the reference if it is given, which may have another
    size. A seam is the run of `overlap + 1` pairs of frames over which one clip fades into the next. A video of a
    single clip gives 0. Without a reference, faster motion at the seams counts too. Raises ValueError for videos of
    another length than the map's.
    """
    steps = FrameSteps(video).values
    return seam_excess(steps, chunks, None if reference is None else FrameSteps(reference).values)


class FrameSteps:
    """Changes of a video that is added in consecutive blocks (3, n, H, W); keeps one frame in memory."""

    def __init__(self, *blocks: Tensor):
        self._steps = [torch.zeros(0, dtype=torch.float64)]
        self._last: Tensor | None = None
        for block in blocks:
            self.add(block)

    def add(self, block: Tensor) -> None:
        """Add the next frames, uint8 or float in [-0.5, 0.5]."""
        block = block.float() if block.dtype == torch.uint8 else block.float() * 255
        joined = block if self._last is None else torch.cat((self._last, block), dim=1)
        self._steps.append(joined.diff(dim=1).abs().mean(dim=(0, 2, 3), dtype=torch.float64).cpu())
        self._last = block[:, -1:].clone()

    @property
    def values(self) -> Tensor:
        """(T - 1,) float64."""
        return torch.cat(self._steps)


def seam_excess(steps: Tensor, chunks: ChunkMap, reference: Tensor | None = None) -> float:
    """`seam_metric` from the `FrameSteps` (T - 1,) of the video and of the reference."""
    for given in (steps, steps if reference is None else reference):
        if len(given) != chunks.num_frames - 1:
            raise ValueError(f"the chunk map is of {chunks.num_frames} frames, the video has {len(given) + 1}")
    if reference is not None:
        steps = steps - reference
    at_seam = seam_places(chunks)
    inside = steps[~at_seam].mean().item() if not at_seam.all() else 0.0
    return steps[at_seam].mean().item() - inside if at_seam.any() else 0.0


def seam_places(chunks: ChunkMap) -> Tensor:
    """(T - 1,) bool: whether the pair of frames t and t + 1 belongs to a seam."""
    places = torch.zeros(chunks.num_frames - 1, dtype=torch.bool)
    for joint in chunks.joints[1:]:
        places[joint - 1 : joint + chunks.overlap] = True
    return places
