"""Evaluation of reconstructions: scores of each clip, and the Frechet distance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sweettok.distributed import from_main, gather_objects, join_processes, together
from sweettok.eval.cache import RealCache
from sweettok.eval.checks import pixel_summary
from sweettok.eval.distance import cautions, measure, stack_features
from sweettok.eval.pipeline import Options, check_agreement, collect, in_order, precision
from sweettok.eval.protocol import Protocol
from sweettok.eval.reconstruction import MEANING, REAL, Scorer, find_notes, reconstructed, summarize
from sweettok.eval.report import distance_name, make_report
from sweettok.eval.sources import Sets
from sweettok.eval.tokenizers import merge_usage
from sweettok.losses.weights import LPIPS_LINEAR, VGG16, find_weights, load_lpips
from sweettok.store import sha256


def run(
    sets: Sets,
    protocol: Protocol,
    options: Options,
    lpips: str | Path | None = None,
    vgg: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate reconstructions on all processes.

    Args:
        sets: clips of `open_tokenizer` or `open_folders`.
        lpips: file with the linear layers of LPIPS; vgg: file of its backbone. Default: the files in torch's cache;
            without them LPIPS is not measured.

    Returns:
        The report, the same on every process. Without the detector's weights it contains the reason why there is no
        distance.

    Raises:
        FileNotFoundError, ValueError (also ClipError): a file cannot be read or has other content than expected.
    """
    device, count = join_processes().device, len(sets.real)
    check_agreement(data=sets.about["sha256"], protocol=protocol.hash)
    extractor, protocol, refused = options.open_detector(protocol, count)
    files = from_main(lambda: _lpips_files(lpips, vgg))
    perceptual = together(lambda: load_lpips(files["vgg"], files["lpips"]).to(device)) if files else None
    store = RealCache(options.cache, protocol, sets.real.list, REAL)
    known = from_main(store.find)
    scorer = Scorer(protocol, extractor, perceptual, known is not None)

    def score() -> dict[int, dict[str, Any]]:
        read = options.batches(sets.fake or sets.real, "clips")
        if sets.tokenizer is not None:
            read = reconstructed(read, sets.tokenizer.to(device), protocol)
        return collect(read, scorer)

    with precision(protocol.tf32), torch.no_grad():
        clips = in_order(*gather_objects(together(score)))
    if known is None:
        from_main(lambda: store.keep(clips))
    else:
        clips = [{**clip, **stored} for clip, stored in zip(clips, known, strict=True)]
    results, notes = summarize(clips, merge_usage(gather_objects(scorer.usage))), find_notes(clips)
    if extractor is not None:
        sides = stack_features(clips, "real"), stack_features(clips, "fake")
        results[distance_name("rfvd", protocol)] = from_main(lambda: measure(*sides, protocol, options.bootstrap))
        notes = cautions(count, count, extractor.width) + notes
    weights = sets.weights | {name: sha256(files[name]) if files else None for name in ("lpips", "vgg")}
    check = {side: pixel_summary([clip[f"{side}_pixels"] for clip in clips]) for side in ("real", "fake")}
    report = {"data": sets.about, "weights": weights, "notes": notes, "input_check": check, "metrics": MEANING}
    return make_report("rfvd", protocol, results, refused, options.batch_size, **report)


def _lpips_files(lpips: str | Path | None, vgg: str | Path | None) -> dict[str, Path] | None:
    """The files of both parts of LPIPS; None if there are none."""
    if lpips is None:
        if vgg is not None:
            raise ValueError("--vgg is the backbone of LPIPS: give --lpips, its linear layers, too")
        try:
            return {"lpips": find_weights(LPIPS_LINEAR), "vgg": find_weights(VGG16)}
        except FileNotFoundError:
            return None
    return {"lpips": find_weights(LPIPS_LINEAR, lpips), "vgg": find_weights(VGG16, vgg)}
