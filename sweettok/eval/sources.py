"""Real and fake clips of an evaluation: videos, or ids that a tokenizer decodes; selected and resized by a protocol.

Letters: T frames, H W pixels, L ids per clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from sweettok.data.backends import ClipError
from sweettok.data.dataset import ClipDataset
from sweettok.data.lists import ClipList, load_clips, some
from sweettok.data.manifest import MANIFEST
from sweettok.data.preprocess import Preprocessing
from sweettok.data.reader import clip_places, probe
from sweettok.data.resize import Fit
from sweettok.data.tokens import TokenDataset
from sweettok.eval.protocol import Protocol
from sweettok.eval.report import checkpoint_hashes
from sweettok.eval.tokenizers import load_tokenizer, preprocessing_of
from sweettok.hub import WEIGHTS
from sweettok.pixels import to_uint8
from sweettok.store import sha256
from sweettok.tokenizer.model import SweetTok

AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Sets:
    """Real and fake clips, and the tokenizer that reconstructs the real ones, or decodes the ids of the fake ones.

    Args:
        fake: None if the tokenizer reconstructs the real clips.
        about: description of the clips in the report.
        weights: SHA-256 of the files of models, if known.
        notes: differences between the protocol and the data.
    """

    real: VideoClips
    fake: Dataset | None
    about: dict[str, Any]
    tokenizer: Any = None
    weights: dict[str, Any] = field(default_factory=lambda: {"tokenizer": None})
    notes: list[str] = field(default_factory=list)


def open_tokenizer(
    checkpoint: str | Path, data: str | Path, protocol: Protocol, root: str | Path | None = None
) -> tuple[Sets, Protocol]:
    """A tokenizer's folder and a list or folder of videos -> the clips, and the protocol completed by the model.

    ValueError if the protocol has another clip size than the tokenizer.
    """
    tokenizer = load_tokenizer(checkpoint)
    config = tokenizer.config
    size = {"frames": config.num_frames, "height": config.height, "width": config.width}
    wrong = [f"{n} {getattr(protocol, n)}" for n, value in size.items() if getattr(protocol, n) not in (None, value)]
    if wrong:
        clips, settings = ", ".join(wrong), " ".join(f"--set {name}={value}" for name, value in size.items())
        reason = f"takes clips of {clips}; this tokenizer needs {settings}, or --protocol exact"
        raise ValueError(f"the protocol {protocol.name} {reason}")
    clips = _choose(load_clips(data, root), protocol.num_real, protocol)
    protocol = _paired(protocol.filled(**size).completed(preprocessing_of(tokenizer)), clips)
    weights = {"tokenizer": checkpoint_hashes(checkpoint)}
    return Sets(VideoClips(clips, protocol), None, describe(data, clips), tokenizer, weights), protocol


def open_folders(originals: str | Path, reconstructions: str | Path, protocol: Protocol) -> tuple[Sets, Protocol]:
    """Two folders (or lists) of videos with the same names -> the clips, and the protocol completed by the files.

    Unless the protocol sets a position, an original must have as many frames as its reconstruction, since the
    reconstructed part of a longer one is unknown. ValueError if only one of the folders has some video.
    """
    real, fake = load_clips(originals), load_clips(reconstructions)
    alone = sorted(set(real.keys) ^ set(fake.keys))
    if alone:
        reason = f"must hold videos of the same names; {len(alone)} are in one of them only{some(alone)}"
        raise ValueError(f"{originals} and {reconstructions} {reason}")
    index_of = {key: index for index, key in enumerate(fake.keys)}
    real = _choose(real, protocol.num_real, protocol)
    fake = fake.subset(index_of[key] for key in real.keys)
    native, equal = protocol.size is None, protocol.position is None
    protocol = _paired(_complete_for_files(fake, protocol), real)
    videos, outputs = VideoClips(real, protocol, native), VideoClips(fake, protocol, native, stride=1)
    about = {**describe(originals, real), "reconstructions": str(reconstructions)}
    return Sets(videos, Pairs(videos, outputs, equal), about), protocol.filled(codec=outputs.codec())


def open_generated(
    fake: str | Path,
    real: str | Path,
    protocol: Protocol,
    checkpoint: str | Path | None = None,
    root: str | Path | None = None,
) -> tuple[Sets, Protocol]:
    """Generated and real clips, and the protocol completed by them.

    Args:
        fake: a folder of generated tokens, which the tokenizer in `checkpoint` decodes, or a list or folder of videos.
        real: a list or folder of videos; `root` as in `load_clips`.

    Raises:
        FileNotFoundError, ValueError: a file cannot be read, or has other content than expected.
    """
    if protocol.paired:
        raise ValueError(f"{protocol.name} is for pairs of original and reconstruction: use rfvd or --set paired=false")
    tokens = (Path(fake) / MANIFEST).is_file()
    if tokens != (checkpoint is not None):
        advice = "give --checkpoint, the tokenizer that decodes them" if tokens else "omit --checkpoint"
        raise ValueError(f"{fake} holds {'' if tokens else 'no '}token shards: {advice}")
    requested, tokenizer, weights = protocol, None, {"tokenizer": None, "generator": None}
    if tokens:
        tokenizer, fakes, about, protocol = _open_tokens(fake, checkpoint, protocol)
        generator = fakes.dataset.manifest.settings.get("generator")
        weights = {"tokenizer": checkpoint_hashes(checkpoint), "generator": {WEIGHTS: generator} if generator else None}
    else:
        clips = _choose(load_clips(fake), protocol.num_fake, protocol)
        about, protocol = describe(fake, clips), _complete_for_files(clips, protocol)
        fakes = VideoClips(clips, protocol, native=requested.size is None, stride=1)  # the stride is of real clips
        protocol = protocol.filled(codec=fakes.codec())
    clips = _choose(load_clips(real, root), protocol.num_real, protocol)
    reals = VideoClips(clips, protocol, native=requested.size is None and not tokens)
    found = {"num_real": len(reals), "num_fake": len(fakes), "codec": protocol.codec}
    missed = {name: value for name, value in found.items() if getattr(requested, name) not in (None, value)}
    notes = [f"the protocol has {n} {getattr(requested, n)}, the data {value}" for n, value in missed.items()]
    sets = Sets(reals, fakes, {"real": describe(real, clips), "fake": about}, tokenizer, weights, notes)
    return sets, protocol.filled(**found, paired=False, real_list=clips.hash)


def _open_tokens(
    folder: str | Path, checkpoint: str | Path, protocol: Protocol
) -> tuple[SweetTok, Subset, dict[str, Any], Protocol]:
    """Tokenizer, generated ids, their description, and the completed protocol."""
    tokenizer, tokens = load_tokenizer(checkpoint), TokenDataset(folder)
    if not isinstance(tokenizer, SweetTok):
        raise ValueError(f"{checkpoint} holds a {type(tokenizer).__name__}, which does not decode token shards")
    tokens.check_tokenizer(tokenizer.ids_hash())
    items = Subset(tokens, chosen(len(tokens), protocol.num_fake, protocol))
    shards = sorted(tokens.folder.glob("shard-*.safetensors"))
    about = {"source": str(folder), "num_clips": len(items), "sha256": sha256(*shards)}
    height, width = protocol.size or (tokenizer.config.height, tokenizer.config.width)
    available = tokens.manifest.num_frames
    frames = protocol.frames or available
    if frames > available:
        raise ValueError(f"the clips in {folder} have {available} frames, the protocol takes {frames}")
    protocol = protocol.filled(frames=frames, height=height, width=width, codec="none")
    return tokenizer, items, about, protocol.completed(preprocessing_of(tokenizer))


def chosen(available: int, wanted: int | None, protocol: Protocol) -> list[int]:
    """Sorted indices of the selected clips: all, the first ones, or a random subset by the protocol's seed."""
    if wanted is None or wanted >= available:
        return list(range(available))
    if protocol.selection == "first":
        return list(range(wanted))
    return sorted(np.random.default_rng(protocol.seed).permutation(available)[:wanted].tolist())


def _choose(clips: ClipList, wanted: int | None, protocol: Protocol) -> ClipList:
    return clips.subset(chosen(len(clips), wanted, protocol))


def describe(source: str | Path, clips: ClipList) -> dict[str, Any]:
    """Clips of a list in a report."""
    return {"source": str(source), "num_clips": len(clips), "sha256": clips.hash}


def _paired(protocol: Protocol, real: ClipList) -> Protocol:
    if protocol.paired is False:
        raise ValueError(f"the protocol {protocol.name} is for unpaired sets: use gfvd, or another protocol")
    return protocol.filled(paired=True, real_list=real.hash, num_real=len(real), num_fake=len(real))


def _complete_for_files(clips: ClipList, protocol: Protocol) -> Protocol:
    """The protocol with its open fields set: default preprocessing, frame count and size of the first video."""
    protocol = protocol.completed(Preprocessing())
    if protocol.frames is not None and protocol.size is not None:
        return protocol
    info = probe(clips.paths[0])
    height, width = protocol.size or (info.height, info.width)
    return protocol.filled(frames=protocol.frames or info.num_frames, height=height, width=width)


class VideoClips(Dataset):
    """Clips of video files: {"video": uint8 (3, T, H, W), "key": str}.

    Args:
        native: the files must have the protocol's size.
        stride: distance between frames. Default: that of the protocol.

    Raises:
        ClipError: a file cannot be read, is too short or has another size.
    """

    def __init__(self, clips: ClipList, protocol: Protocol, native: bool = False, stride: int | None = None):
        self.list, self.protocol, self.native = clips, protocol, native
        size = protocol.size if protocol.resize_filter == "decoder" and not native else None
        cut = {"position": protocol.position, "stride": stride or protocol.stride, "seed": protocol.seed}
        self.clips = ClipDataset(clips, protocol.frames, size, resize=protocol.resize, short=protocol.short, **cut)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.clips[index]
        height, width = item["video"].shape[-2:]
        if self.native and (height, width) != self.protocol.size:
            others = f"others {self.protocol.height}x{self.protocol.width}"
            advice = "set the height and width to resize them to with --set"
            raise ClipError(f"{self.list.paths[index]}: frames are {height}x{width}, {others}: {advice}")
        return {"video": fit(item["video"], self.protocol), "key": item["key"]}

    def codec(self) -> str:
        """File name suffixes of the clips."""
        return ",".join(sorted({path.suffix.lower().lstrip(".") for path in self.list.paths}))


class Pairs(Dataset):
    """Items of `real` with the "video" of `fake` added as "fake". equal: check that both have equally many frames."""

    def __init__(self, real: VideoClips, fake: VideoClips, equal: bool):
        self.real, self.fake, self.equal = real, fake, equal

    def __len__(self) -> int:
        return len(self.real)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.equal:
            real, fake = self.real.list.paths[index], self.fake.list.paths[index]
            counts = probe(real).num_frames, probe(fake).num_frames
            if counts[0] != counts[1]:
                lengths = f"{real} has {counts[0]} frames, its reconstruction {fake} has {counts[1]}"
                advice = "give --position first, center or last, the frames of the original that were reconstructed"
                raise ClipError(f"{lengths}: {advice}")
        return {**self.real[index], "fake": self.fake[index]["video"]}


def fit(video: Tensor, protocol: Protocol) -> Tensor:
    """Resize uint8 (..., H, W) to the protocol's size (antialiased bilinear)."""
    return Fit(protocol.resize, tuple(video.shape[-2:]), protocol.size).apply(video)


def autocast(device: torch.device, protocol: Protocol) -> AbstractContextManager:
    """The protocol's autocast for the tokenizer."""
    dtype = AUTOCAST[protocol.autocast]
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def decoded(batches: Iterator[dict[str, Any]], tokenizer: Any, protocol: Protocol) -> Iterator[dict[str, Any]]:
    """Add "video" to batches of "ids" (B, L): float in [-0.5, 0.5], or uint8 if frames are resized."""
    for batch in batches:
        with autocast(batch["ids"].device, protocol):
            video = tokenizer.decode(batch["ids"]).float()
        position = "center" if protocol.position == "random" else protocol.position
        frames = clip_places(video.shape[2], protocol.frames, position)
        video = video[:, :, frames.start : frames.stop]
        if tuple(video.shape[-2:]) != protocol.size:
            video = fit(to_uint8(video, "floor" if protocol.quantize == "floor" else "nearest"), protocol)
        yield {**batch, "video": video}
