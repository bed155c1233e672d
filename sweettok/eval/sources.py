"""Where clips come from: videos, or ids that a tokenizer decodes; cut, sized and chosen as a protocol says.

Letters: T frames, H W pixels, L ids per clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sweettok.data.backends import ClipError
from sweettok.data.dataset import ClipDataset
from sweettok.data.lists import ClipList
from sweettok.data.reader import clip_places, probe
from sweettok.data.resize import Fit
from sweettok.data.tokens import MANIFEST, TokenDataset
from sweettok.eval.protocol import Protocol
from sweettok.pixels import to_uint8
from sweettok.store import sha256

AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def chosen(available: int, wanted: int | None, protocol: Protocol) -> list[int]:
    """Places of the clips to take out of so many: all, the first ones, or a draw by the protocol's seed, in order."""
    if wanted is None or wanted >= available:
        return list(range(available))
    if protocol.selection == "first":
        return list(range(wanted))
    return sorted(np.random.default_rng(protocol.seed).permutation(available)[:wanted].tolist())


def shape_of_files(clips: ClipList, protocol: Protocol) -> Protocol:
    """The protocol with the frame count and size that it leaves open taken from the first video."""
    if protocol.frames is not None and protocol.size is not None:
        return protocol
    info = probe(clips.paths[0])
    return protocol.filled(
        frames=protocol.frames or info.num_frames,
        height=protocol.height or info.height, width=protocol.width or info.width,
    )  # fmt: skip


class VideoClips(Dataset):
    """Clips of video files: {"video": uint8 (3, T, H, W), "key": str, "index": int}.

    native: the files must have the protocol's size already. stride: of the frames, by default the protocol's.
    Raises ClipError, naming the file, for one that cannot be read, is too short or has another size.
    """

    def __init__(self, clips: ClipList, protocol: Protocol, native: bool = False, stride: int | None = None):
        self.protocol, self.native = protocol, native
        by_decoder = protocol.resize_filter == "decoder" and not native
        self.clips = ClipDataset(
            clips, protocol.frames, protocol.size if by_decoder else None, protocol.position,
            stride or protocol.stride, protocol.resize, protocol.short, protocol.seed,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.clips[index]
        size = tuple(item["video"].shape[-2:])
        if self.native and size != self.protocol.size:
            path, (height, width) = self.list.paths[index], self.protocol.size
            raise ClipError(f"{path}: frames are {size[0]}x{size[1]}, others {height}x{width}: say with --set to which "
                            "height and width all are to be resized")  # fmt: skip
        return {"video": fit(item["video"], self.protocol), "key": item["key"], "index": index}

    @property
    def list(self) -> ClipList:
        return self.clips.clips

    def codec(self) -> str:
        """Kinds of the files, by their suffixes."""
        return ",".join(sorted({path.suffix.lower().lstrip(".") for path in self.list.paths}))


def fit(video: Tensor, protocol: Protocol) -> Tensor:
    """uint8 (3, T, H, W) -> the protocol's size, as it resizes; "decoder" stands for antialiased bilinear here."""
    fit = Fit(protocol.resize, tuple(video.shape[-2:]), protocol.size)
    return fit.apply(video, antialias=protocol.resize_filter != "bilinear")


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


def tokens_hash(tokens: TokenDataset) -> str:
    """SHA-256 over the shards' bytes, in order: says which generated ids were scored."""
    return sha256(*sorted(tokens.folder.glob("shard-*.safetensors")))


def decoded(batches: Iterator[dict[str, Any]], tokenizer: Any, protocol: Protocol) -> Iterator[dict[str, Any]]:
    """Batches of "ids" (B, L) with their "video" added: float in [-0.5, 0.5], or uint8 where frames must be resized."""
    for batch in batches:
        device = batch["ids"].device
        dtype = AUTOCAST[protocol.autocast]
        with torch.autocast(device.type, dtype) if dtype else nullcontext():
            video = tokenizer.decode(batch["ids"]).float()
        position = "center" if protocol.position == "random" else protocol.position
        places = clip_places(video.shape[2], protocol.frames, position)
        video = video[:, :, places.start : places.stop]
        if tuple(video.shape[-2:]) != protocol.size:
            rounding = "floor" if protocol.quantize == "floor" else "nearest"
            video = torch.stack([fit(clip, protocol) for clip in to_uint8(video, rounding)])
        yield {**batch, "video": video}
