"""Generation quality: how far generated clips are from real ones, as two sets.

Generated clips are ids that the tokenizer decodes, so that no video codec touches what is measured, or video files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sweettok.data.lists import load_clips
from sweettok.data.tokens import TokenDataset
from sweettok.distributed import from_main, gather_objects, join_processes, together
from sweettok.eval.cache import RealCache
from sweettok.eval.checks import pixel_facts, pixel_notes, pixel_summary
from sweettok.eval.distance import cautions, measure, stack_features
from sweettok.eval.features import FeatureExtractor, clip_features, detector_frames
from sweettok.eval.pipeline import Options, check_agreement, collect, in_order, precision
from sweettok.eval.protocol import Protocol
from sweettok.eval.report import checkpoint_hashes, make_report
from sweettok.eval.sources import Chosen, VideoClips, chosen, complete_for_files, decoded, describe_list, is_tokens
from sweettok.eval.tokenizers import UsageCounter, load_tokenizer, preprocessing_of
from sweettok.hub import WEIGHTS
from sweettok.store import sha256
from sweettok.tokenizer.model import SweetTok


@dataclass
class Sets:
    """Real and generated clips. Generated ids come with the tokenizer that decodes them.

    about: describes both sides in the report. weights: SHA-256 of the files of tokenizer and generator, where known.
    notes: what the protocol asks for and the data do not have.
    """

    real: VideoClips
    fake: VideoClips | Chosen
    about: dict[str, Any]
    weights: dict[str, Any]
    notes: list[str]
    tokenizer: SweetTok | None = None

    def usage(self) -> dict[str, Any] | None:
        """How much of each word list the ids use."""
        if self.tokenizer is None:
            return None
        layout = self.tokenizer.layout
        counter = UsageCounter({segment.name: segment.vocab_size for segment in layout.segments})
        for item in (self.fake[index] for index in range(len(self.fake))):
            local = layout.to_local(item["ids"][None])
            counter.update({segment.name: local[:, segment.places] for segment in layout.segments})
        return counter.summary()


def open_sets(
    fake: str | Path,
    real: str | Path,
    protocol: Protocol,
    checkpoint: str | Path | None = None,
    root: str | Path | None = None,
) -> tuple[Sets, Protocol]:
    """The clips of both sides, and the protocol completed by them.

    Args:
        fake: a folder of generated tokens, which the tokenizer in `checkpoint` decodes, or a list or folder of videos.
        real: a list or folder of videos; `root` as in `load_clips`.

    Raises:
        FileNotFoundError, ValueError: a file cannot be read, or does not fit; the message names it.
    """
    if protocol.paired:
        raise ValueError(f"{protocol.name} is for pairs of original and reconstruction: use rfvd or --set paired=false")
    asked, tokenizer, generator = protocol, None, None
    if is_tokens(fake):
        if checkpoint is None:
            raise ValueError(f"{fake} holds token shards: give --checkpoint, the tokenizer that decodes them")
        tokenizer, fakes, about, generator, protocol = _open_tokens(fake, checkpoint, protocol)
    else:
        if checkpoint is not None:
            raise ValueError(f"{fake} holds no token shards: leave --checkpoint out to score videos")
        clips = load_clips(fake)
        clips = clips.subset(chosen(len(clips), protocol.num_fake, protocol))
        about, protocol = describe_list(fake, clips), complete_for_files(clips, protocol)
        fakes = VideoClips(clips, protocol, native=asked.size is None, stride=1)  # the stride is of real clips
        protocol = protocol.filled(codec=fakes.codec())
    clips = load_clips(real, root)
    clips = clips.subset(chosen(len(clips), protocol.num_real, protocol))
    reals = VideoClips(clips, protocol, native=asked.size is None and tokenizer is None)
    found = {"num_real": len(reals), "num_fake": len(fakes), "codec": protocol.codec}
    notes = [
        f"the protocol asks for {name} {getattr(asked, name)}, here it is {value}"
        for name, value in found.items()
        if getattr(asked, name) not in (None, value)
    ]
    weights = {
        "tokenizer": checkpoint_hashes(checkpoint) if checkpoint else None,
        "generator": {WEIGHTS: generator} if generator else None,
    }
    sets = Sets(reals, fakes, {"real": describe_list(real, clips), "fake": about}, weights, notes, tokenizer)
    return sets, protocol.filled(**found, paired=False, real_list=clips.hash)


def _open_tokens(
    folder: str | Path, checkpoint: str | Path, protocol: Protocol
) -> tuple[SweetTok, Chosen, dict[str, Any], str | None, Protocol]:
    """Tokenizer, generated ids, their description, the hash of their generator, and the protocol completed by them."""
    tokenizer, tokens = load_tokenizer(checkpoint), TokenDataset(folder)
    if not isinstance(tokenizer, SweetTok):
        raise ValueError(f"{checkpoint} holds a {type(tokenizer).__name__}, which does not decode token shards")
    tokens.check_tokenizer(tokenizer.ids_hash())
    items = Chosen(tokens, chosen(len(tokens), protocol.num_fake, protocol))
    shards = sorted(tokens.folder.glob("shard-*.safetensors"))
    about = {"source": str(folder), "num_clips": len(items), "sha256": sha256(*shards)}
    height, width = protocol.size or (tokenizer.config.height, tokenizer.config.width)
    available = tokens.manifest.num_frames
    frames = protocol.frames or available
    if frames > available:
        raise ValueError(f"the clips in {folder} have {available} frames, the protocol takes {frames}")
    protocol = protocol.filled(frames=frames, height=height, width=width, codec="none")
    generator = tokens.manifest.settings.get("generator")
    return tokenizer, items, about, generator, protocol.completed(preprocessing_of(tokenizer))


def run(sets: Sets, protocol: Protocol, options: Options) -> dict[str, Any]:
    """Score what `open_sets` returned, on all processes together; returns the report, the same on every process.

    Without I3D weights the report states why there is no distance. Raises ClipError and ValueError naming the file.
    """
    check_agreement(data={side: about["sha256"] for side, about in sets.about.items()}, protocol=protocol.hash)
    bits = sets.tokenizer.layout.bits if sets.tokenizer else None
    results, notes, check = {"usage": sets.usage(), "bits_per_clip": bits}, sets.notes, None
    extractor, protocol, refused = options.open_detector(protocol, min(len(sets.real), len(sets.fake)))
    if extractor is not None:
        store = RealCache(options.cache, protocol, sets.real.list)
        known = from_main(store.find)
        with precision(protocol.tf32), torch.no_grad():
            real = known or _describe(options.batches(sets.real, "real"), "real", protocol, extractor)
            read = options.batches(sets.fake, "generated")
            if sets.tokenizer is not None:
                read = decoded(read, sets.tokenizer.to(join_processes().device), protocol)
            fake = _describe(read, "fake", protocol, extractor)
        if known is None:
            from_main(lambda: store.keep(real))
        sides = {"real": real, "fake": fake}
        features = [stack_features(clips, side) for side, clips in sides.items()]
        results["gfvd"] = from_main(lambda: measure(*features, protocol, options.bootstrap))
        check = {side: pixel_summary([clip[f"{side}_pixels"] for clip in clips]) for side, clips in sides.items()}
        notes = notes + cautions(len(real), len(fake), extractor.width) + pixel_notes(**check)
    report = {"data": sets.about, "weights": sets.weights, "notes": notes, "input_check": check}
    return make_report("gfvd", protocol, results, refused, options.batch_size, **report)


def _describe(
    read: Iterator[dict[str, Any]], side: str, protocol: Protocol, extractor: FeatureExtractor
) -> list[dict[str, Any]]:
    """The features of all clips of a side and the facts of their pixels, on every process."""

    def describe(batch: dict[str, Any]) -> dict[str, Sequence]:
        frames = detector_frames(batch["video"], protocol, side == "fake")
        features = clip_features(extractor, frames, batch["key"])
        return {f"{side}_pixels": pixel_facts(frames), f"{side}_features": features}

    return in_order(*gather_objects(together(lambda: collect(read, describe))))
