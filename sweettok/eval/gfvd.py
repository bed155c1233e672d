"""The gfvd command: how far generated clips are from real ones, as two sets.

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
from sweettok.distributed import join_processes
from sweettok.eval.cache import RealCache
from sweettok.eval.checks import PixelCheck, suspicions
from sweettok.eval.features import FeatureExtractor, detector_frames, find_i3d, load_extractor
from sweettok.eval.pipeline import batches, merged, overlapped, precision
from sweettok.eval.protocol import Protocol
from sweettok.eval.report import checkpoint_hashes, refusal, report
from sweettok.eval.sets import FeatureSet, cautions, keeps_features, measure
from sweettok.eval.sources import Chosen, VideoClips, chosen, decoded, is_tokens, shape_of_files, tokens_hash
from sweettok.eval.tokenizers import load_tokenizer
from sweettok.eval.usage import UsageCounter
from sweettok.hub import WEIGHTS
from sweettok.store import sha256
from sweettok.tokenizer.model import SweetTok


@dataclass
class Fakes:
    """Generated clips: what to read, how to describe them; where they are ids, what decodes them and who wrote them.

    generator: SHA-256 of its weights, None where that is not told.
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
    """Score the clips in `fake` against those of `real`; the result is plain JSON data, the same on every process.

    Args:
        fake: a folder of generated tokens, which the tokenizer in `checkpoint` decodes, or a list or folder of videos.
        real: a list or folder of videos; `root` as in `load_clips`.
        cache: folder in which the statistics of the real clips are kept, and found again by the protocol's hash.

    Without I3D weights the report says why there is no distance. Raises FileNotFoundError and ValueError (also
    ClipError) naming the file, for whatever cannot be read.
    """
    state, wanted = join_processes(), protocol
    if protocol.paired:
        raise ValueError(f"the protocol {protocol.name} is for pairs of original and reconstruction: use rfvd, or "
                         "--set paired=false")  # fmt: skip
    fakes, protocol = _open_fakes(fake, checkpoint, protocol.filled(paired=False))
    clips = load_clips(real, root)
    clips = clips.subset(chosen(len(clips), protocol.num_real, protocol))
    reals = VideoClips(clips, protocol, native=wanted.size is None and not fakes.tokenizer)
    protocol = protocol.filled(num_real=len(reals), num_fake=len(fakes.items), real_list=clips.hash)
    notes, check = _differences(wanted, protocol), None
    results: dict[str, Any] = {
        "usage": fakes.usage(), "bits_per_clip": fakes.tokenizer.layout.bits if fakes.tokenizer else None,
    }  # fmt: skip
    i3d = find_i3d(i3d)
    extractor = load_extractor(i3d, protocol)
    refused = refusal(min(len(reals), len(fakes.items)), protocol.scored_frames, extractor)
    if refused is None:
        protocol = protocol.filled(detector_file=sha256(i3d))
        loading = {"state": state, "batch_size": batch_size, "workers": workers}
        results["gfvd"], check = _distance(
            reals, fakes, protocol, extractor.to(state.device), bootstrap, cache, loading
        )
        notes += cautions(len(reals), len(fakes.items), extractor.width) + suspicions(**check)
    return report(
        "gfvd", protocol, results, state, refused=refused, notes=notes, input_check=check,
        data={
            "real": {"source": str(real), "num_clips": len(reals), "sha256": clips.hash}, "fake": fakes.about,
        },
        weights={
            "tokenizer": checkpoint_hashes(checkpoint) if checkpoint else None,
            "generator": {WEIGHTS: fakes.generator} if fakes.generator else None,
        },
        settings={"batch_size": batch_size},
    )  # fmt: skip


def _distance(
    reals: VideoClips,
    fakes: Fakes,
    protocol: Protocol,
    extractor: FeatureExtractor,
    bootstrap: int,
    cache: str | Path | None,
    loading: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `measure` tells of both sides, and what their pixels look like."""
    state = loading["state"]

    def score(clips: Iterator[dict[str, Any]], count: int, fake: bool) -> tuple[FeatureSet, PixelCheck]:
        keep = keeps_features(protocol, count, extractor.width, bootstrap)
        features, check = FeatureSet(protocol.seed, keep), PixelCheck()

        @torch.no_grad()
        def use(batch: dict[str, Any]) -> None:
            frames = detector_frames(batch["video"], protocol, fake)
            check.update(frames)
            features.update(extractor(frames), batch["index"].tolist(), batch["key"])

        overlapped(clips, use)
        return merged(features), merged(check)

    store = RealCache(cache, protocol, reals.list, keeps_features(protocol, len(reals), extractor.width, bootstrap))
    known = store.find()
    state.wait_for_everyone()  # every process has looked before one of them writes
    with precision(protocol.tf32), torch.no_grad():
        real, real_check = known or score(batches(reals, told="real", **loading), len(reals), False)
        fake, fake_check = score(_pixels(fakes, protocol, loading), len(fakes.items), True)
    if known is None and state.is_main_process:
        store.keep(real, real_check)
    check = {"real": real_check.summary(), "fake": fake_check.summary()}
    return measure(real, fake, protocol, bootstrap), check


def _pixels(fakes: Fakes, protocol: Protocol, loading: dict[str, Any]) -> Iterator[dict[str, Any]]:
    read = batches(fakes.items, told="generated", **loading)
    if fakes.tokenizer is None:
        return read
    return decoded(read, fakes.tokenizer.to(loading["state"].device), protocol)


def _open_fakes(fake: str | Path, checkpoint: str | Path | None, protocol: Protocol) -> tuple[Fakes, Protocol]:
    if not is_tokens(fake):
        if checkpoint is not None:
            raise ValueError(f"{fake} holds no token shards: leave --checkpoint out to score videos")
        clips = load_clips(fake)
        clips = clips.subset(chosen(len(clips), protocol.num_fake, protocol))
        about = {"source": str(fake), "num_clips": len(clips), "sha256": clips.hash}
        native = protocol.size is None
        protocol = shape_of_files(clips, protocol)
        videos = VideoClips(clips, protocol, native, stride=1)  # generated clips have the stride they were made at
        return Fakes(videos, about), protocol.filled(codec=videos.codec())
    if checkpoint is None:
        raise ValueError(f"{fake} holds token shards: give --checkpoint, the tokenizer that decodes them")
    tokenizer = load_tokenizer(checkpoint)
    tokens = TokenDataset(fake)
    if not isinstance(tokenizer, SweetTok):
        raise ValueError(f"{checkpoint} holds a {type(tokenizer).__name__}, which does not decode token shards")
    tokens.check_tokenizer(tokenizer.ids_hash())
    places = chosen(len(tokens), protocol.num_fake, protocol)
    about = {"source": str(fake), "num_clips": len(places), "sha256": tokens_hash(tokens)}
    config = tokenizer.config
    height, width = protocol.size or (config.height, config.width)
    frames = protocol.frames or tokens.manifest.num_frames
    if frames > tokens.manifest.num_frames:
        raise ValueError(f"the clips in {fake} have {tokens.manifest.num_frames} frames, the protocol takes {frames}")
    protocol = protocol.filled(frames=frames, height=height, width=width, codec="none")
    return Fakes(Chosen(tokens, places), about, tokenizer, tokens.manifest.settings.get("generator")), protocol


def _differences(wanted: Protocol, found: Protocol) -> list[str]:
    """What the protocol asks for and the data do not give."""
    notes = []
    for name in ("num_real", "num_fake", "codec"):
        asked, got = getattr(wanted, name), getattr(found, name)
        if asked is not None and asked != got:
            notes.append(f"the protocol asks for {name} {asked}, here it is {got}")
    return notes
