"""Where clips come from: videos, or ids that a tokenizer decodes; cut, resized and chosen as a protocol states.

Letters: T frames, H W pixels, L ids per clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sweettok.data.backends import ClipError
from sweettok.data.dataset import ClipDataset
from sweettok.data.lists import ClipList
from sweettok.data.manifest import MANIFEST
from sweettok.data.preprocess import Preprocessing
from sweettok.data.reader import clip_places, probe
from sweettok.data.resize import Fit
from sweettok.eval.protocol import Protocol
from sweettok.pixels import to_uint8

AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: torch.device, protocol: Protocol) -> AbstractContextManager:
    """The arithmetic of the tokenizer that a protocol states."""
    dtype = AUTOCAST[protocol.autocast]
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def chosen(available: int, wanted: int | None, protocol: Protocol) -> list[int]:
    """Places of the clips to take out of so many: all, the first ones, or a draw by the protocol's seed, in order."""
    if wanted is None or wanted >= available:
        return list(range(available))
    if protocol.selection == "first":
        return list(range(wanted))
    return sorted(np.random.default_rng(protocol.seed).permutation(available)[:wanted].tolist())


def complete_for_files(clips: ClipList, protocol: Protocol) -> Protocol:
    """The protocol with what it leaves open: frame count and size of the first video, centred frames, stretched."""
    protocol = protocol.completed(Preprocessing())
    if protocol.frames is not None and protocol.size is not None:
        return protocol
    info = probe(clips.paths[0])
    frames, height, width = protocol.frames or info.num_frames, info.height, info.width
    return protocol.filled(frames=frames, height=protocol.height or height, width=protocol.width or width)


class VideoClips(Dataset):
    """Clips of video files: {"video": uint8 (3, T, H, W), "key": str, "index": int}.

    native: the files must have the protocol's size already. stride: of the frames, by default the protocol's.
    Raises ClipError, naming the file, for one that cannot be read, is too short or has another size.
    """

    def __init__(self, clips: ClipList, protocol: Protocol, native: bool = False, stride: int | None = None):
        self.protocol, self.native = protocol, native
        by_decoder = protocol.resize_filter == "decoder" and not native
        self.clips = ClipDataset(
            clips,
            protocol.frames,
            protocol.size if by_decoder else None,
            protocol.position,
            stride or protocol.stride,
            protocol.resize,
            protocol.short,
            protocol.seed,
        )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.clips[index]
        height, width = item["video"].shape[-2:]
        if self.native and (height, width) != self.protocol.size:
            raise ClipError(
                f"{self.list.paths[index]}: frames are {height}x{width}, others "
                f"{self.protocol.height}x{self.protocol.width}: give the height and width that all are resized to with "
                "--set"
            )
        return {"video": fit(item["video"], self.protocol), "key": item["key"], "index": index}

    @property
    def list(self) -> ClipList:
        return self.clips.clips

    def codec(self) -> str:
        """Kinds of the files, by their suffixes."""
        return ",".join(sorted({path.suffix.lower().lstrip(".") for path in self.list.paths}))


def fit(video: Tensor, protocol: Protocol) -> Tensor:
    """uint8 (3, T, H, W) -> the protocol's size, by antialiased bilinear resizing."""
    return Fit(protocol.resize, tuple(video.shape[-2:]), protocol.size).apply(video)


def describe_list(source: str | Path, clips: ClipList) -> dict[str, Any]:
    """A list of clips in a report."""
    return {"source": str(source), "num_clips": len(clips), "sha256": clips.hash}


class Chosen(Dataset):
    """Some items of a data set, numbered anew in their "index"."""

    def __init__(self, items: Dataset, places: Sequence[int]):
        self.items, self.places = items, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.items[self.places[index]], "index": index}


def is_tokens(folder: str | Path) -> bool:
    """Whether a folder holds token shards."""
    return (Path(folder) / MANIFEST).is_file()


def decoded(batches: Iterator[dict[str, Any]], tokenizer: Any, protocol: Protocol) -> Iterator[dict[str, Any]]:
    """Batches of "ids" (B, L) with their "video" added: float in [-0.5, 0.5], or uint8 where frames must be resized."""
    for batch in batches:
        with autocast(batch["ids"].device, protocol):
            video = tokenizer.decode(batch["ids"]).float()
        position = "center" if protocol.position == "random" else protocol.position
        places = clip_places(video.shape[2], protocol.frames, position)
        video = video[:, :, places.start : places.stop]
        if tuple(video.shape[-2:]) != protocol.size:
            rounding = "floor" if protocol.quantize == "floor" else "nearest"
            video = fit(to_uint8(video, rounding), protocol)
        yield {**batch, "video": video}
