"""Token shards of a list of videos, for training a generator.

Letters: B clips, T frames, H W pixels, L ids per clip.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sweettok.data.backends import ClipError
from sweettok.data.dataset import ClipDataset, make_loader, plain_errors
from sweettok.data.lists import ClipList
from sweettok.data.manifest import MANIFEST, TokenManifest
from sweettok.data.preprocess import Preprocessing
from sweettok.data.tokens import ShardWriter
from sweettok.distributed import from_main, join_processes, main_first
from sweettok.tokenizer.model import SweetTok


def tokenize(
    tokenizer: SweetTok,
    clips: ClipList,
    out: str | Path,
    *,
    num_classes: int | None = None,
    preprocessing: Preprocessing | None = None,
    batch_size: int = 8,
    workers: int = 2,
    precision: str = "no",
    **views: Any,
) -> TokenManifest:
    """Write the missing token shards of `clips` into the folder `out`, each process its share.

    Args:
        num_classes: by default `count_classes(clips)`.
        preprocessing: how clips are made from files; by default `tokenizer.config.preprocessing`.
        workers: processes that read videos, for each device.
        precision: "no" is float32 without TF32; "bf16" is faster on some devices, and some ids differ; "auto" is the
            faster of the two on this device, which is measured once: `out` keeps the choice.
        views: fields of TokenManifest: clips_per_video (more than 1 are spread evenly over the video, whatever the
            position), flips, given_frames (also encode the first given_frames frames as a clip) and rows_per_shard.
    """
    how = preprocessing or tokenizer.config.preprocessing
    state = join_processes()
    tokenizer = tokenizer.to(state.device)
    if precision == "auto":
        precision = from_main(lambda: find_precision(out, tokenizer))
    manifest = make_manifest(tokenizer, clips, how, num_classes, precision, **views)
    rank, world_size = state.process_index, state.num_processes
    writer = main_first(lambda: ShardWriter(out, manifest, clips.keys, clips.labels, rank, world_size))
    state.destroy_process_group()  # processes do not wait for each other below: their shares take different times
    options = {**asdict(how), "position": "even" if manifest.clips_per_video > 1 else how.position}
    config = tokenizer.config
    options |= {"clips_per_video": manifest.clips_per_video, "flips": manifest.flips}
    dataset = ClipDataset(clips, config.num_frames, (config.height, config.width), **options)
    # Batches end with their shard, so that ids do not depend on which process writes which shard.
    shards = [(rows, [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]) for rows in writer.pending()]
    loader = iter(plain_errors(make_loader(dataset, [part for _, parts in shards for part in parts], workers)))
    hidden = None if rank == 0 else True  # None: shown on terminals only
    try:
        with tqdm(total=sum(len(rows) for rows, _ in shards), unit="clip", disable=hidden) as bar:
            for rows, parts in shards:
                encoded = []
                for _ in parts:
                    video = next(loader)["video"].to(state.device, non_blocking=True)
                    encoded.append(encode(tokenizer, video, manifest.given_frames, precision))
                    bar.update(len(video))
                writer.write(rows, *(torch.cat(ids) for ids in zip(*encoded, strict=True)))
    except ClipError as error:
        raise ClipError(f"{error} (sweettok data scan finds all such clips of a list)") from error
    return manifest


def make_manifest(
    tokenizer: SweetTok, clips: ClipList, how: Preprocessing, num_classes: int | None, precision: str, **views: Any
) -> TokenManifest:
    """The manifest of the shards. Raises ValueError for options that do not fit the tokenizer or the list."""
    config, given_frames = tokenizer.config, views.get("given_frames")
    if given_frames is not None:
        if given_frames >= config.num_frames:
            raise ValueError(f"given_frames must be less than the {config.num_frames} of a clip, got {given_frames}")
        config.check_clip(given_frames, config.height, config.width)
    settings = {"precision": precision}
    if views.get("clips_per_video", 1) == 1 and how.position != "center":
        settings["position"] = how.position
    return TokenManifest(
        kind="tokenized",
        tokenizer_hash=tokenizer.ids_hash(),
        layout=tokenizer.layout,
        num_clips=len(clips),
        clips_hash=clips.hash,
        num_frames=config.num_frames,
        stride=how.stride,
        resize=how.resize,
        short=how.short,
        num_classes=count_classes(clips) if num_classes is None else num_classes,
        class_names=clips.class_names,
        settings=settings,
        **views,
    )


def count_classes(clips: ClipList) -> int:
    """Number of class names of a list, or its highest label plus one; 0 without labels."""
    if clips.labels is None:
        return 0
    return len(clips.class_names) if clips.class_names is not None else max(clips.labels) + 1


def find_precision(out: str | Path, tokenizer: SweetTok) -> str:
    """ "no" or "bf16": what the shards in `out` have, or else the one in which `tokenizer` encodes faster."""
    if (Path(out) / MANIFEST).is_file():
        return TokenManifest.read(out).settings["precision"]
    config, device = tokenizer.config, next(tokenizer.parameters()).device
    video = torch.zeros(1, 3, config.num_frames, config.height, config.width, dtype=torch.uint8, device=device)
    seconds: dict[str, list[float]] = {"no": [], "bf16": []}
    for _ in range(4):
        for precision, times in seconds.items():
            start = perf_counter()
            encode(tokenizer, video, None, precision)
            times.append(perf_counter() - start)
    return min(seconds, key=lambda precision: median(seconds[precision][1:]))  # the first calls make caches


def encode(tokenizer: SweetTok, video: Tensor, given_frames: int | None, precision: str) -> tuple[Tensor, ...]:
    """uint8 (B, 3, T, H, W) -> ids (B, L) on the CPU; with given frames also the ids (B, L) of only those."""
    clips = [video] if given_frames is None else [video, video[:, :, :given_frames]]
    with (
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        torch.autocast(video.device.type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        return tuple(tokenizer.encode(clip).ids.cpu() for clip in clips)
