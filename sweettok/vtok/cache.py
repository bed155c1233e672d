"""Features of the frozen encoder in shards, in the format of token shards (`sweettok.data.tokens`).

A folder holds manifest.json, clips.txt and shard-*.safetensors with "key" (rows, S, C), "residuals" (rows, M, P, C),
"times" (rows, L) and "key_frame" (rows,). All clips have as many tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sweettok.config import choice
from sweettok.data.lists import clips_hash
from sweettok.data.manifest import ShardedRows
from sweettok.data.shards import as_source
from sweettok.data.tokens import ShardDataset, ShardWriter
from sweettok.store import check_output_folder
from sweettok.video.chunks import check_least
from sweettok.video.clips import in_order
from sweettok.vtok.model import VTok
from sweettok.vtok.moments import Moments
from sweettok.vtok.output import KEY, FrameFeatures
from sweettok.vtok.sources import WordTokens

DTYPES = {"float32": "F32", "float16": "F16"}


@dataclass(frozen=True)
class FeatureManifest(ShardedRows):
    """How the features of a folder were made. A call that continues a folder must have an equal manifest.

    Args:
        tokenizer_hash: `VTok.features_hash()`.
        num_clips, clips_hash: of the source clips, see `lists.clips_hash`.
        kinds: of the tokens of a clip.
        patches, dim: P and C.
        dtype: of key and residuals in the files: "float32", or "float16" for half the size.
        settings: options of `VTok.features`.
    """

    tokenizer_hash: str
    num_clips: int
    clips_hash: str
    kinds: tuple[int, ...]
    patches: int
    dim: int
    dtype: str = "float32"
    rows_per_shard: int = 256
    settings: dict[str, Any] = field(default_factory=dict)
    kind: str = "features"

    contents = "features", "cache_features"
    views = 1
    num_classes = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds))
        if self.dtype not in DTYPES or self.kind != "features":
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, kind features; got {self.dtype}, {self.kind}")
        if self.num_clips < 1 or self.rows_per_shard < 1:
            raise ValueError(
                f"clips and rows_per_shard must be at least 1; got {self.num_clips} and {self.rows_per_shard}"
            )

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape of a row and type, as safetensors calls it, of each array of a shard."""
        keys, dtype = self.kinds.count(KEY), DTYPES[self.dtype]
        motions = len(self.kinds) - keys
        return {
            "key": ((keys, self.dim), dtype),
            "residuals": ((motions, self.patches, self.dim), dtype),
            "times": ((len(self.kinds),), "F32"),
            "key_frame": ((), "I64"),
        }


class FeatureDataset(ShardDataset):
    """The rows of a folder of features; an item is FrameFeatures of one clip, `FrameFeatures.stack` makes batches.

    Errors are those of `ShardDataset`.
    """

    manifest_class = FeatureManifest

    def __getitem__(self, row: int) -> FrameFeatures:
        arrays = {name: torch.from_numpy(np.array(rows))[None] for name, rows in self.arrays(row).items()}
        arrays |= {name: arrays[name].float() for name in ("key", "residuals")}
        return FrameFeatures(kinds=torch.tensor(self.manifest.kinds), **arrays)

    def check_tokenizer(self, features_hash: str) -> None:
        """Raise ValueError unless a VTok with this `features_hash()` made these features."""
        made = self.manifest.tokenizer_hash
        if features_hash != made:
            raise ValueError(
                f"the features in {self.folder} are of the encoder and settings {made[:12]}, not of "
                f"{features_hash[:12]}: give that VTok, or write the features with this one"
            )


def cache_features(
    model: VTok | WordTokens,
    keys: Sequence[str],
    videos: Sequence[str | Path | Tensor],
    out: str | Path,
    *,
    fps: float | None = None,
    dtype: str = "float32",
    rows_per_shard: int = 256,
    workers: int = 2,
    **options: Any,
) -> FeatureDataset:
    """Write the missing shards of the features of videos into the folder `out`, and open it.

    Args:
        keys: names of the videos, in their order; with `ClipList`, `clips.keys` and `clips.paths`.
        videos: paths or tensors (1, 3, T, H, W), taken when needed; `workers` threads read the first frames of the next
            videos while one is encoded.
        fps: of all videos; needed for tensors. Default: that of each file.
        options: of `features` of the model, but no function as key frame.

    Raises ValueError for videos that do not fit, for clips with other numbers of tokens than the first, and for a
    folder with another manifest, InUseError while another call writes into it.
    """
    _check(keys, videos, dtype, options)
    check_least("rows_per_shard", rows_per_shard)
    check_least("workers", workers)
    check_output_folder(out)
    first = model.features(videos[0], fps, **options)
    about = FeatureManifest(
        tokenizer_hash=model.features_hash(),
        num_clips=len(keys),
        clips_hash=clips_hash(keys),
        kinds=tuple(first.kinds.tolist()),
        patches=first.residuals.shape[2],
        dim=model.dim,
        dtype=dtype,
        rows_per_shard=rows_per_shard,
        settings={"fps": fps, **{name: value for name, value in options.items() if name != "batch_size"}},
    )
    writer = ShardWriter(out, about, keys)
    try:
        for rows in writer.pending():
            features = _features(model, videos, rows, fps, options, workers)
            for row, found in zip(rows, features, strict=True):
                _check_like(first, found, keys[row])
            writer.save(rows, _arrays(FrameFeatures.stack(features), dtype))
    finally:
        writer.close()
    return FeatureDataset(out)


def _check(keys: Sequence[str], videos: Sequence[Any], dtype: str, options: dict[str, Any]) -> None:
    if len(keys) != len(videos) or not keys:
        raise ValueError(f"there must be a key for each video, at least one; got {len(keys)} and {len(videos)}")
    if repeated := [key for key, times in Counter(keys).items() if times > 1]:
        raise ValueError(f"keys must differ; {repeated[0]!r} is that of several videos")
    if callable(options.get("key_frame")):
        raise ValueError("key_frame must be a name or an index, since a function cannot be kept in the manifest")
    choice("dtype", dtype, tuple(DTYPES))
    listed = videos if isinstance(videos, list | tuple) else ()
    paths = [as_source(video) for video in listed if isinstance(video, str | Path)]
    if missing := [path for path in paths if isinstance(path, Path) and not path.is_file()]:
        raise FileNotFoundError(f"{len(missing)} of {len(paths)} videos are missing, the first is {missing[0]}")


def _features(
    model: VTok | WordTokens,
    videos: Sequence[Any],
    rows: Sequence[int],
    fps: float | None,
    options: dict[str, Any],
    workers: int,
) -> list[FrameFeatures]:
    if isinstance(model, WordTokens):
        return [model.features(videos[row], fps, **options) for row in rows]
    key, reading = options.get("key_frame"), {name: value for name, value in options.items() if name != "key_frame"}
    tasks = (partial(_begin, model, videos, row, fps, reading) for row in rows)
    with closing(in_order(tasks, workers, workers)) as begun:
        return [FrameFeatures.join(list(model.moment_features(moments, key))) for moments in begun]


def _begin(model: VTok, videos: Sequence[Any], row: int, fps: float | None, options: dict[str, Any]) -> Moments:
    return model.moments(videos[row], fps, **options).begin()


def _check_like(first: FrameFeatures, found: FrameFeatures, key: str) -> None:
    if len(found) != 1 or not found.kinds.equal(first.kinds):
        raise ValueError(
            f"{key} has {len(found)} clips of {len(found.kinds)} tokens, the first video has 1 clip of "
            f"{len(first.kinds)}: stored clips must have as many tokens, with key frames at the same places"
        )


def _arrays(features: FrameFeatures, dtype: str) -> dict[str, np.ndarray]:
    kinds = {"key": dtype, "residuals": dtype, "times": "float32", "key_frame": "int64"}
    return {name: getattr(features, name).cpu().numpy().astype(kind) for name, kind in kinds.items()}
