"""The rfvd command: from a tokenizer and a list of videos, or from two folders of videos, to a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from sweettok.data.lists import load_clips, some
from sweettok.distributed import join_processes
from sweettok.eval.cache import RealCache
from sweettok.eval.features import find_i3d, load_extractor
from sweettok.eval.pipeline import batches, merged, precision
from sweettok.eval.protocol import Protocol
from sweettok.eval.reconstruction import MEANING, reconstructed, score
from sweettok.eval.report import checkpoint_hashes, refusal, report
from sweettok.eval.sets import cautions, keeps_features, measure
from sweettok.eval.sources import VideoClips, chosen, shape_of_files
from sweettok.eval.tokenizers import load_tokenizer
from sweettok.losses.weights import LPIPS_LINEAR, VGG16, find_weights, load_lpips
from sweettok.store import sha256


@dataclass
class Source:
    """What is to be scored: clips to read, and what reconstructs them, unless each comes with its reconstruction."""

    clips: VideoClips
    items: Dataset
    about: dict[str, Any]
    checkpoint: str | Path | None = None
    tokenizer: torch.nn.Module | None = None


def run(
    source: Source,
    protocol: Protocol,
    i3d: str | Path | None = None,
    lpips: str | Path | None = None,
    vgg: str | Path | None = None,
    bootstrap: int = 0,
    cache: str | Path | None = None,
    batch_size: int = 4,
    workers: int = 2,
) -> dict[str, Any]:
    """Score what `open_tokenizer` or `open_folders` gave; the result is plain JSON data, the same on every process.

    Without `i3d` the report says why there is no rFVD; without `lpips` (the linear layers' file) there is no LPIPS.
    Both are also taken from torch's cache. Raises FileNotFoundError and ValueError (also ClipError) naming the file.
    """
    state = join_processes()
    files = _lpips_files(lpips, vgg)
    i3d = find_i3d(i3d)
    count = len(source.items)
    extractor = load_extractor(i3d, protocol)
    refused = refusal(count, protocol.scored_frames, extractor)
    keep = False
    if refused is None:
        protocol = protocol.filled(detector_file=sha256(i3d))
        extractor = extractor.to(state.device)
        keep = keeps_features(protocol, count, extractor.width, bootstrap)
    else:
        extractor = None
    perceptual = load_lpips(files["vgg"], files["lpips"]).to(state.device) if files else None
    store = RealCache(cache if extractor else None, protocol, source.clips.list, keep)
    known = store.find()
    state.wait_for_everyone()  # every process has looked before one of them writes
    read = batches(source.items, state, batch_size, workers, "clips")
    with precision(protocol.tf32), torch.no_grad():
        if source.tokenizer is not None:
            read = reconstructed(read, source.tokenizer.to(state.device), protocol)
        outcome = merged(score(read, protocol, extractor, perceptual, known is not None, keep))
    results, notes = outcome.summary(), outcome.notes()
    if extractor is not None:
        real = known[0] if known else outcome.real
        if known is None and state.is_main_process:
            store.keep(real, outcome.real_pixels)
        results["rfvd"] = measure(real, outcome.fake, protocol, bootstrap)
        notes = cautions(count, count, extractor.width) + notes
    return report(
        "rfvd", protocol, results, state, refused=refused, notes=notes, data=source.about, metrics=MEANING,
        input_check={"real": outcome.real_pixels.summary(), "fake": outcome.fake_pixels.summary()},
        weights={
            "tokenizer": checkpoint_hashes(source.checkpoint) if source.checkpoint else None,
            **{name: sha256(files[name]) if files else None for name in ("lpips", "vgg")},
        },
        settings={"batch_size": batch_size},
    )  # fmt: skip


def open_tokenizer(
    checkpoint: str | Path,
    data: str | Path,
    protocol: Protocol,
    root: str | Path | None = None,
) -> tuple[Source, Protocol]:
    """The tokenizer in a folder and the videos of a list or folder; and the protocol, filled in.

    ValueError when the protocol takes other clips than the tokenizer does.
    """
    tokenizer = load_tokenizer(checkpoint)
    config = tokenizer.config
    takes = {"frames": config.num_frames, "height": config.height, "width": config.width}
    asked = {name: getattr(protocol, name) for name in takes}
    wrong = [f"{name} {value}" for name, value in asked.items() if value not in (None, takes[name])]
    if wrong:
        settings = " ".join(f"--set {name}={value}" for name, value in takes.items())
        raise ValueError(f"the protocol {protocol.name} takes clips of {', '.join(wrong)}; this tokenizer needs "
                         f"{settings}, or --protocol exact")  # fmt: skip
    clips = load_clips(data, root)
    clips = clips.subset(chosen(len(clips), protocol.num_real, protocol))
    protocol = _paired(protocol.filled(**takes), clips.hash, len(clips))
    videos = VideoClips(clips, protocol)
    about = {"source": str(data), "num_clips": len(clips), "sha256": clips.hash}
    return Source(videos, videos, about, checkpoint, tokenizer), protocol


def open_folders(originals: str | Path, reconstructions: str | Path, protocol: Protocol) -> tuple[Source, Protocol]:
    """Two folders (or lists) of videos with the same names; and the protocol, filled in from the reconstructions.

    ValueError naming the videos that only one of them has.
    """
    real, fake = load_clips(originals), load_clips(reconstructions)
    alone = sorted(set(real.keys) ^ set(fake.keys))
    if alone:
        raise ValueError(f"{originals} and {reconstructions} must hold videos of the same names; {len(alone)} are in "
                         f"one of them only{some(alone)}")  # fmt: skip
    places = chosen(len(real), protocol.num_real, protocol)
    place_of = {key: place for place, key in enumerate(fake.keys)}
    real = real.subset(places)
    fake = fake.subset(place_of[key] for key in real.keys)
    native = protocol.size is None
    protocol = _paired(shape_of_files(fake, protocol), real.hash, len(real))
    videos, outputs = VideoClips(real, protocol, native), VideoClips(fake, protocol, native, stride=1)
    about = {
        "source": str(originals), "reconstructions": str(reconstructions), "num_clips": len(real), "sha256": real.hash,
    }  # fmt: skip
    return Source(videos, _Pairs(videos, outputs), about), protocol.filled(codec=outputs.codec())


class _Pairs(Dataset):
    """Clips with their reconstructions: the items of the first, with the "video" of the second as "fake"."""

    def __init__(self, real: VideoClips, fake: VideoClips):
        self.real, self.fake = real, fake

    def __len__(self) -> int:
        return len(self.real)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.real[index], "fake": self.fake[index]["video"]}


def _paired(protocol: Protocol, real_list: str, count: int) -> Protocol:
    if protocol.paired is False:
        raise ValueError(f"the protocol {protocol.name} is for sets that are not paired: use gfvd, or another one")
    return protocol.filled(paired=True, real_list=real_list, num_real=count, num_fake=count)


def _lpips_files(lpips: str | Path | None, vgg: str | Path | None) -> dict[str, Path] | None:
    """Where the two parts of LPIPS are; None without its linear layers."""
    if lpips is None:
        if vgg is not None:
            raise ValueError("--vgg is the backbone of LPIPS: give --lpips, its linear layers, too")
        try:
            return {"lpips": find_weights(LPIPS_LINEAR), "vgg": find_weights(VGG16)}
        except FileNotFoundError:
            return None
    return {"lpips": find_weights(LPIPS_LINEAR, lpips), "vgg": find_weights(VGG16, vgg)}
