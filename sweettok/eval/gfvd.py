"""Evaluation of generated clips: the Frechet distance, and the usage of the word lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from sweettok.distributed import from_main, gather_objects, join_processes, together
from sweettok.eval.cache import RealCache
from sweettok.eval.checks import pixel_facts, pixel_notes, pixel_summary
from sweettok.eval.distance import cautions, measure, stack_features
from sweettok.eval.features import FeatureExtractor, clip_features, detector_frames
from sweettok.eval.pipeline import Options, check_agreement, collect, in_order, precision
from sweettok.eval.protocol import Protocol
from sweettok.eval.report import distance_name, make_report
from sweettok.eval.sources import Sets, decoded
from sweettok.eval.tokenizers import UsageCounter


def run(sets: Sets, protocol: Protocol, options: Options) -> dict[str, Any]:
    """Evaluate the generated clips of `open_generated` on all processes; returns the report, the same on every process.

    Without the detector's weights the report contains the reason why there is no distance. Raises ClipError or
    ValueError for a file that cannot be read.
    """
    check_agreement(data={side: about["sha256"] for side, about in sets.about.items()}, protocol=protocol.hash)
    bits = sets.tokenizer.layout.bits if sets.tokenizer else None
    results, notes, check = {"usage": _usage(sets), "bits_per_clip": bits}, sets.notes, None
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
        results[distance_name("gfvd", protocol)] = from_main(lambda: measure(*features, protocol, options.bootstrap))
        check = {side: pixel_summary([clip[f"{side}_pixels"] for clip in clips]) for side, clips in sides.items()}
        notes = notes + cautions(len(real), len(fake), extractor.width) + pixel_notes(**check)
    report = {"data": sets.about, "weights": sets.weights, "notes": notes, "input_check": check}
    return make_report("gfvd", protocol, results, refused, options.batch_size, **report)


def _describe(
    read: Iterator[dict[str, Any]], side: str, protocol: Protocol, extractor: FeatureExtractor
) -> list[dict[str, Any]]:
    """Features and pixel statistics of all clips of a side, on every process."""

    def describe(batch: dict[str, Any]) -> dict[str, Sequence]:
        frames = detector_frames(batch["video"], protocol, side == "fake")
        features = clip_features(extractor, frames, batch["key"])
        return {f"{side}_pixels": pixel_facts(frames), f"{side}_features": features}

    return in_order(*gather_objects(together(lambda: collect(read, describe))))


def _usage(sets: Sets) -> dict[str, Any] | None:
    """Usage of each word list by the generated ids."""
    if sets.tokenizer is None:
        return None
    layout = sets.tokenizer.layout
    counter = UsageCounter({segment.name: segment.vocab_size for segment in layout.segments})
    for item in (sets.fake[index] for index in range(len(sets.fake))):
        local = layout.to_local(item["ids"][None])
        counter.update({segment.name: local[:, segment.places] for segment in layout.segments})
    return counter.summary()
