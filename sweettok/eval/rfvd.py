"""The rfvd command: from a checkpoint and a list of videos to a report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from sweettok.data.backends import ClipError
from sweettok.data.dataset import ClipDataset, make_eval_loader
from sweettok.data.lists import load_clips
from sweettok.eval.i3d import I3D
from sweettok.eval.reconstruction import PROTOCOL, cautions, evaluate_reconstruction, refusal
from sweettok.eval.report import sha256, versions
from sweettok.eval.tokenizers import load_tokenizer
from sweettok.weights import VGG16, find_weights, load_lpips


def run(
    checkpoint: str | Path,
    data: str | Path,
    root: str | Path | None = None,
    limit: int | None = None,
    i3d: str | Path | None = None,
    lpips: str | Path | None = None,
    vgg: str | Path | None = None,
    batch_size: int = 4,
    workers: int = 2,
) -> dict[str, Any]:
    """Score the tokenizer in folder `checkpoint` on the videos of `data`; the result is plain JSON data.

    Without `i3d` the report says why there is no rFVD; without `lpips` (the linear layers' file) there is no LPIPS.
    Raises FileNotFoundError and ValueError (also ClipError) naming the file, for whatever cannot be read.
    """
    for name, number in (("limit", limit), ("batch size", batch_size)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if vgg is not None and lpips is None:
        raise ValueError("--vgg is the backbone of LPIPS: give --lpips, its linear layers, too")
    state = PartialState()
    if state.num_processes > 1:
        raise ValueError(f"rfvd runs in one process, got {state.num_processes}: set NUM_PROCESSES=1")
    device = state.device
    tokenizer = load_tokenizer(checkpoint).to(device)
    config = tokenizer.config
    clips = load_clips(data, root)
    if limit is not None:
        clips = clips.subset(range(min(limit, len(clips))))
    dataset = ClipDataset(
        clips, config.num_frames, (config.height, config.width),
        **{name: PROTOCOL[name] for name in ("position", "stride", "resize", "short")},
    )  # fmt: skip
    refused = refusal(len(clips), config.num_frames, i3d is not None)
    detector = I3D.from_release(i3d).to(device) if refused is None else None
    perceptual = load_lpips(vgg, lpips).to(device) if lpips is not None else None
    loader = make_eval_loader(dataset, batch_size, workers)
    results = evaluate_reconstruction(tokenizer, _moved(tqdm(loader, unit="batch"), device), detector, perceptual)
    clip = {"frames": config.num_frames, "height": config.height, "width": config.width}
    epsilon = detector.batch_norm_eps if detector is not None else None
    files = {
        "i3d": i3d if detector is not None else None,
        "lpips": lpips,
        "vgg": find_weights(VGG16, vgg) if lpips is not None else None,
    }
    return {
        "format": 1,
        "protocol": {**PROTOCOL, **clip, "fvd": {**PROTOCOL["fvd"], "batch_norm_eps": epsilon}},
        "data": {"source": str(data), "limit": limit, "num_clips": len(clips), "sha256": clips.hash},
        "weights": {
            "tokenizer": {name: sha256(Path(checkpoint) / name) for name in ("config.json", "model.safetensors")},
            **{name: sha256(path) if path is not None else None for name, path in files.items()},
        },
        "settings": {"batch_size": batch_size, "device": device.type},
        "versions": versions(),
        "results": results,
        "rfvd_refused": refused,
        "notes": cautions(len(clips)) if detector is not None else [],
    }


def _moved(batches: Iterable[dict[str, Any]], device: torch.device) -> Iterator[dict[str, Any]]:
    try:
        for batch in batches:
            yield {**batch, "video": batch["video"].to(device, non_blocking=True)}
    except ClipError as error:  # a loader worker puts its own traceback before the message
        raise ClipError(str(error).strip().splitlines()[-1].partition("ClipError: ")[2] or str(error)) from error
