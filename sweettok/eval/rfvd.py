"""Reconstruction quality: from a tokenizer and a list of videos, or from two folders of videos, to a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from sweettok.data.backends import ClipError
from sweettok.data.lists import load_clips, some
from sweettok.data.reader import probe
from sweettok.distributed import from_main, join_processes, together
from sweettok.eval.cache import RealCache
from sweettok.eval.features import find_i3d, load_extractor
from sweettok.eval.pipeline import batches, check_agreement, merged, precision
from sweettok.eval.protocol import Protocol
from sweettok.eval.reconstruction import MEANING, reconstructed, score
from sweettok.eval.report import checkpoint_hashes, make_report, refusal
from sweettok.eval.sets import cautions, check_bootstrap, keeps_features, measure
from sweettok.eval.sources import VideoClips, chosen, complete_for_files
from sweettok.eval.tokenizers import load_tokenizer, preprocessing_of
from sweettok.losses.weights import LPIPS_LINEAR, VGG16, find_weights, load_lpips
from sweettok.store import sha256


@dataclass
class Source:
    """What is scored: clips to read, and the tokenizer, unless each clip comes with its reconstruction."""

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
    """Score what `open_tokenizer` or `open_folders` returned, on all processes together.

    Args:
        i3d: weights of I3D; without them the report states why there is no rFVD.
        lpips: the linear layers of LPIPS, vgg: its backbone; without `lpips` there is no LPIPS. Weights that are not
            given are also looked for in torch's cache.
        bootstrap: redrawn sets for an interval of the rFVD, 0 or at least 20.
        cache: folder in which the features of the real clips are kept, and found again.
        batch_size: clips per batch; workers: processes that read videos, for each device.

    Returns:
        The report as JSON data, the same on every process.

    Raises:
        FileNotFoundError, ValueError (also ClipError): a file cannot be read, or does not fit; the message names it.
    """
    check_bootstrap(bootstrap)
    device, count = join_processes().device, len(source.items)
    files = from_main(lambda: _lpips_files(lpips, vgg))
    i3d = from_main(lambda: find_i3d(i3d))
    extractor = together(lambda: load_extractor(i3d, protocol))
    refused, keep = refusal(count, protocol.scored_frames, extractor), False
    if refused is None:
        protocol = protocol.filled(detector_file=together(lambda: sha256(i3d)))
        extractor = extractor.to(device)
        keep = keeps_features(protocol, count, extractor.width, bootstrap)
    else:
        extractor = None
    perceptual = together(lambda: load_lpips(files["vgg"], files["lpips"]).to(device)) if files else None
    check_agreement(clips=source.clips.list.hash, protocol=protocol.hash)
    store = RealCache(cache if extractor else None, protocol, source.clips.list, keep)
    known = from_main(store.find)

    def score_all():
        read = batches(source.items, batch_size, workers, "clips")
        if source.tokenizer is not None:
            read = reconstructed(read, source.tokenizer.to(device), protocol)
        return score(read, protocol, extractor, perceptual, known is not None, keep)

    with precision(protocol.tf32), torch.no_grad():
        outcome = merged(together(score_all))
    results, notes = outcome.summary(), outcome.notes()
    if extractor is not None:
        real = known[0] if known else outcome.real
        if known is None:
            from_main(lambda: store.keep(real, outcome.real_pixels))
        results["rfvd"] = from_main(lambda: measure(real, outcome.fake, protocol, bootstrap))
        notes = cautions(count, count, extractor.width) + notes
    hashes = checkpoint_hashes(source.checkpoint) if source.checkpoint else None
    weights = {name: sha256(files[name]) if files else None for name in ("lpips", "vgg")}
    return make_report(
        "rfvd",
        protocol,
        results,
        refused=refused,
        notes=notes,
        data=source.about,
        metrics=MEANING,
        input_check={"real": outcome.real_pixels.summary(), "fake": outcome.fake_pixels.summary()},
        weights={"tokenizer": hashes, **weights},
        settings={"batch_size": batch_size},
    )


def open_tokenizer(
    checkpoint: str | Path, data: str | Path, protocol: Protocol, root: str | Path | None = None
) -> tuple[Source, Protocol]:
    """The tokenizer in a folder and the videos of a list or folder; and the protocol, completed by the model.

    ValueError when the protocol takes other clips than the tokenizer does.
    """
    tokenizer = load_tokenizer(checkpoint)
    config = tokenizer.config
    takes = {"frames": config.num_frames, "height": config.height, "width": config.width}
    wrong = [
        f"{name} {getattr(protocol, name)}" for name in takes if getattr(protocol, name) not in (None, takes[name])
    ]
    if wrong:
        settings = " ".join(f"--set {name}={value}" for name, value in takes.items())
        raise ValueError(
            f"the protocol {protocol.name} takes clips of {', '.join(wrong)}; this tokenizer needs {settings}, or "
            "--protocol exact"
        )
    clips = load_clips(data, root)
    clips = clips.subset(chosen(len(clips), protocol.num_real, protocol))
    protocol = _paired(protocol.filled(**takes).completed(preprocessing_of(tokenizer)), clips.hash, len(clips))
    videos = VideoClips(clips, protocol)
    about = {"source": str(data), "num_clips": len(clips), "sha256": clips.hash}
    return Source(videos, videos, about, checkpoint, tokenizer), protocol


def open_folders(originals: str | Path, reconstructions: str | Path, protocol: Protocol) -> tuple[Source, Protocol]:
    """Two folders (or lists) of videos with the same names; and the protocol, completed by the reconstructions.

    Unless the protocol states a position, an original must have as many frames as its reconstruction: which part of a
    longer one was reconstructed cannot be known. ValueError naming the videos that only one of the folders has.
    """
    real, fake = load_clips(originals), load_clips(reconstructions)
    alone = sorted(set(real.keys) ^ set(fake.keys))
    if alone:
        raise ValueError(
            f"{originals} and {reconstructions} must hold videos of the same names; {len(alone)} are in one of them "
            f"only{some(alone)}"
        )
    places = chosen(len(real), protocol.num_real, protocol)
    place_of = {key: place for place, key in enumerate(fake.keys)}
    real = real.subset(places)
    fake = fake.subset(place_of[key] for key in real.keys)
    native, equal = protocol.size is None, protocol.position is None
    protocol = _paired(complete_for_files(fake, protocol), real.hash, len(real))
    videos, outputs = VideoClips(real, protocol, native), VideoClips(fake, protocol, native, stride=1)
    about = {
        "source": str(originals),
        "reconstructions": str(reconstructions),
        "num_clips": len(real),
        "sha256": real.hash,
    }
    return Source(videos, _Pairs(videos, outputs, equal), about), protocol.filled(codec=outputs.codec())


class _Pairs(Dataset):
    """Clips with their reconstructions: the items of the first, with the "video" of the second as "fake".

    equal: both files of a pair must have the same number of frames.
    """

    def __init__(self, real: VideoClips, fake: VideoClips, equal: bool):
        self.real, self.fake, self.equal = real, fake, equal

    def __len__(self) -> int:
        return len(self.real)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.equal:
            paths = self.real.list.paths[index], self.fake.list.paths[index]
            counts = [probe(path).num_frames for path in paths]
            if counts[0] != counts[1]:
                raise ClipError(
                    f"{paths[0]} has {counts[0]} frames, its reconstruction {paths[1]} has {counts[1]}: say with "
                    "--position first, center or last which frames of the original were reconstructed"
                )
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
