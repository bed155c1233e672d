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
from sweettok.distributed import from_main, gather_objects, join_processes, together
from sweettok.eval.cache import RealCache
from sweettok.eval.checks import pixel_summary
from sweettok.eval.distance import cautions, measure, stack_features
from sweettok.eval.pipeline import Options, check_agreement, collect, in_order, precision
from sweettok.eval.protocol import Protocol
from sweettok.eval.reconstruction import MEANING, Scorer, find_notes, reconstructed, summarize
from sweettok.eval.report import checkpoint_hashes, make_report
from sweettok.eval.sources import VideoClips, chosen, complete_for_files, describe_list
from sweettok.eval.tokenizers import load_tokenizer, merge_usage, preprocessing_of
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
    return Source(videos, videos, describe_list(data, clips), checkpoint, tokenizer), protocol


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
    about = {**describe_list(originals, real), "reconstructions": str(reconstructions)}
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


def run(
    source: Source,
    protocol: Protocol,
    options: Options,
    lpips: str | Path | None = None,
    vgg: str | Path | None = None,
) -> dict[str, Any]:
    """Score what `open_tokenizer` or `open_folders` returned, on all processes together.

    Args:
        lpips: the linear layers of LPIPS, vgg: its backbone. Without `lpips`, or copies in torch's cache, no LPIPS.

    Returns:
        The report, the same on every process. Without I3D weights it states why there is no rFVD.

    Raises:
        FileNotFoundError, ValueError (also ClipError): a file cannot be read, or does not fit; the message names it.
    """
    device, count = join_processes().device, len(source.items)
    check_agreement(data=source.about["sha256"], protocol=protocol.hash)
    extractor, protocol, refused = options.open_detector(protocol, count)
    files = from_main(lambda: _lpips_files(lpips, vgg))
    perceptual = together(lambda: load_lpips(files["vgg"], files["lpips"]).to(device)) if files else None
    store = RealCache(options.cache if extractor else None, protocol, source.clips.list)
    known = from_main(store.find)
    scorer = Scorer(protocol, extractor, perceptual, known is not None)

    def score() -> dict[int, dict[str, Any]]:
        read = options.batches(source.items, "clips")
        if source.tokenizer is not None:
            read = reconstructed(read, source.tokenizer.to(device), protocol)
        return collect(read, scorer)

    with precision(protocol.tf32), torch.no_grad():
        clips = in_order(*gather_objects(together(score)))
    results, notes = summarize(clips, merge_usage(gather_objects(scorer.usage))), find_notes(clips)
    if extractor is not None:
        if known is None:
            from_main(lambda: store.keep(clips))
        sides = stack_features(known or clips, "real"), stack_features(clips, "fake")
        results["rfvd"] = from_main(lambda: measure(*sides, protocol, options.bootstrap))
        notes = cautions(count, count, extractor.width) + notes
    weights = {"tokenizer": checkpoint_hashes(source.checkpoint) if source.checkpoint else None}
    weights |= {name: sha256(files[name]) if files else None for name in ("lpips", "vgg")}
    check = {side: pixel_summary([clip[f"{side}_pixels"] for clip in clips]) for side in ("real", "fake")}
    report = {"data": source.about, "weights": weights, "notes": notes, "input_check": check, "metrics": MEANING}
    return make_report("rfvd", protocol, results, refused, options.batch_size, **report)


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
