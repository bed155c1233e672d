"""Generation quality: how far generated clips are from real ones, as two sets.

Generated clips are ids that the tokenizer decodes, so that no video codec touches what is measured, or video files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sweettok.data.lists import load_clips
from sweettok.data.tokens import TokenDataset
from sweettok.distributed import from_main, join_processes, together
from sweettok.eval.cache import RealCache
from sweettok.eval.checks import PixelCheck, suspicions
from sweettok.eval.features import FeatureExtractor, detector_frames, find_i3d, load_extractor
from sweettok.eval.pipeline import batches, check_agreement, merged, overlapped, precision
from sweettok.eval.protocol import Protocol
from sweettok.eval.report import checkpoint_hashes, make_report, refusal
from sweettok.eval.sets import FeatureSet, cautions, check_bootstrap, keeps_features, measure
from sweettok.eval.sources import Chosen, VideoClips, chosen, complete_for_files, decoded, is_tokens
from sweettok.eval.tokenizers import UsageCounter, load_tokenizer, preprocessing_of
from sweettok.hub import WEIGHTS
from sweettok.store import sha256
from sweettok.tokenizer.model import SweetTok


@dataclass
class Fakes:
    """Generated clips: what to read and how to describe them; for ids also the tokenizer that decodes them.

    generator: SHA-256 of the generator's weights, None where it is unknown.
    """

    items: VideoClips | Chosen
    about: dict[str, Any]
    tokenizer: SweetTok | None = None
    generator: str | None = None

    def usage(self) -> dict[str, Any] | None:
        """How much of each word list the ids use."""
        if self.tokenizer is None:
            return None
        layout = self.tokenizer.layout
        counter = UsageCounter({segment.name: segment.vocab_size for segment in layout.segments})
        for item in (self.items[index] for index in range(len(self.items))):
            local = layout.to_local(item["ids"][None])
            counter.update({segment.name: local[:, segment.places] for segment in layout.segments})
        return counter.summary()


def run(
    fake: str | Path,
    real: str | Path,
    protocol: Protocol,
    checkpoint: str | Path | None = None,
    root: str | Path | None = None,
    i3d: str | Path | None = None,
    bootstrap: int = 0,
    cache: str | Path | None = None,
    batch_size: int = 4,
    workers: int = 2,
) -> dict[str, Any]:
    """Score the clips in `fake` against those of `real`, on all processes together.

    Args:
        fake: a folder of generated tokens, which the tokenizer in `checkpoint` decodes, or a list or folder of videos.
        real: a list or folder of videos; `root` as in `load_clips`.
        i3d: weights of I3D; without them the report states why there is no distance.
        bootstrap: redrawn sets for an interval of the gFVD, 0 or at least 20.
        cache: folder in which the features of the real clips are kept, and found again.
        batch_size: clips per batch; workers: processes that read videos, for each device.

    Returns:
        The report as JSON data, the same on every process.

    Raises:
        FileNotFoundError, ValueError (also ClipError): a file cannot be read, or does not fit; the message names it.
    """
    check_bootstrap(bootstrap)
    if protocol.paired:
        raise ValueError(
            f"the protocol {protocol.name} is for pairs of original and reconstruction: use rfvd, or --set paired=false"
        )
    asked = protocol
    fakes, protocol = together(lambda: _open_fakes(fake, checkpoint, asked.filled(paired=False)))
    clips = together(lambda: load_clips(real, root))
    clips = clips.subset(chosen(len(clips), protocol.num_real, protocol))
    reals = VideoClips(clips, protocol, native=asked.size is None and not fakes.tokenizer)
    protocol = protocol.filled(num_real=len(reals), num_fake=len(fakes.items), real_list=clips.hash)
    notes, check = _differences(asked, protocol), None
    bits = fakes.tokenizer.layout.bits if fakes.tokenizer else None
    results: dict[str, Any] = {"usage": fakes.usage(), "bits_per_clip": bits}
    i3d = from_main(lambda: find_i3d(i3d))
    extractor = together(lambda: load_extractor(i3d, protocol))
    refused = refusal(min(len(reals), len(fakes.items)), protocol.scored_frames, extractor)
    check_agreement(real=clips.hash, fake=fakes.about["sha256"], protocol=protocol.hash)
    if refused is None:
        protocol = protocol.filled(detector_file=together(lambda: sha256(i3d)))
        loading = {"batch_size": batch_size, "workers": workers}
        results["gfvd"], check = _distance(reals, fakes, protocol, extractor, bootstrap, cache, loading)
        notes += cautions(len(reals), len(fakes.items), extractor.width) + suspicions(**check)
    return make_report(
        "gfvd",
        protocol,
        results,
        refused=refused,
        notes=notes,
        input_check=check,
        data={
            "real": {"source": str(real), "num_clips": len(reals), "sha256": clips.hash},
            "fake": fakes.about,
        },
        weights={
            "tokenizer": checkpoint_hashes(checkpoint) if checkpoint else None,
            "generator": {WEIGHTS: fakes.generator} if fakes.generator else None,
        },
        settings={"batch_size": batch_size},
    )


def _distance(
    reals: VideoClips,
    fakes: Fakes,
    protocol: Protocol,
    extractor: FeatureExtractor,
    bootstrap: int,
    cache: str | Path | None,
    loading: dict[str, int],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `measure` returns for both sides, and the summary of their pixels."""
    extractor = extractor.to(join_processes().device)

    def score(clips: Iterator[dict[str, Any]], count: int, fake: bool) -> tuple[FeatureSet, PixelCheck]:
        keep = keeps_features(protocol, count, extractor.width, bootstrap)
        features, check = FeatureSet(protocol.seed, keep), PixelCheck()

        @torch.no_grad()
        def use(batch: dict[str, Any]) -> None:
            frames = detector_frames(batch["video"], protocol, fake)
            check.update(frames)
            features.update(extractor(frames), batch["index"].tolist(), batch["key"])

        together(lambda: overlapped(clips, use))
        return merged(features), merged(check)

    keep = keeps_features(protocol, len(reals), extractor.width, bootstrap)
    store = RealCache(cache, protocol, reals.list, keep)
    known = from_main(store.find)
    with precision(protocol.tf32), torch.no_grad():
        real, real_check = known or score(batches(reals, name="real", **loading), len(reals), False)
        fake, fake_check = score(_pixels(fakes, protocol, loading), len(fakes.items), True)
    if known is None:
        from_main(lambda: store.keep(real, real_check))
    distance = from_main(lambda: measure(real, fake, protocol, bootstrap))
    return distance, {"real": real_check.summary(), "fake": fake_check.summary()}


def _pixels(fakes: Fakes, protocol: Protocol, loading: dict[str, int]) -> Iterator[dict[str, Any]]:
    read = batches(fakes.items, name="generated", **loading)
    if fakes.tokenizer is None:
        return read
    return decoded(read, fakes.tokenizer.to(join_processes().device), protocol)


def _open_fakes(fake: str | Path, checkpoint: str | Path | None, protocol: Protocol) -> tuple[Fakes, Protocol]:
    """The generated clips, and the protocol completed by them."""
    if not is_tokens(fake):
        if checkpoint is not None:
            raise ValueError(f"{fake} holds no token shards: leave --checkpoint out to score videos")
        clips = load_clips(fake)
        clips = clips.subset(chosen(len(clips), protocol.num_fake, protocol))
        about = {"source": str(fake), "num_clips": len(clips), "sha256": clips.hash}
        native = protocol.size is None
        protocol = complete_for_files(clips, protocol)
        videos = VideoClips(clips, protocol, native, stride=1)  # the stride is of real clips: generated ones have it
        return Fakes(videos, about), protocol.filled(codec=videos.codec())
    if checkpoint is None:
        raise ValueError(f"{fake} holds token shards: give --checkpoint, the tokenizer that decodes them")
    tokenizer = load_tokenizer(checkpoint)
    tokens = TokenDataset(fake)
    if not isinstance(tokenizer, SweetTok):
        raise ValueError(f"{checkpoint} holds a {type(tokenizer).__name__}, which does not decode token shards")
    tokens.check_tokenizer(tokenizer.ids_hash())
    places = chosen(len(tokens), protocol.num_fake, protocol)
    shards = sorted(tokens.folder.glob("shard-*.safetensors"))
    about = {"source": str(fake), "num_clips": len(places), "sha256": sha256(*shards)}
    config = tokenizer.config
    height, width = protocol.size or (config.height, config.width)
    frames = protocol.frames or tokens.manifest.num_frames
    if frames > tokens.manifest.num_frames:
        raise ValueError(f"the clips in {fake} have {tokens.manifest.num_frames} frames, the protocol takes {frames}")
    protocol = protocol.filled(frames=frames, height=height, width=width, codec="none")
    protocol = protocol.completed(preprocessing_of(tokenizer))
    return Fakes(Chosen(tokens, places), about, tokenizer, tokens.manifest.settings.get("generator")), protocol


def _differences(asked: Protocol, found: Protocol) -> list[str]:
    """What the protocol asks for and the data do not have."""
    notes = []
    for name in ("num_real", "num_fake", "codec"):
        wanted, got = getattr(asked, name), getattr(found, name)
        if wanted is not None and wanted != got:
            notes.append(f"the protocol asks for {name} {wanted}, here it is {got}")
    return notes
