"""The tokenize command: every clip of a list through the encoder once, into a folder that training reads.

Letters: B clips, T frames, H W pixels, L ids per clip.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from sweettok.data.backends import ClipError
from sweettok.data.dataset import ClipDataset, make_loader, plain_errors
from sweettok.data.lists import ClipList, load_clips
from sweettok.data.reader import SHORT
from sweettok.data.resize import RESIZES
from sweettok.data.tokens import ShardWriter, TokenManifest
from sweettok.distributed import join_processes, main_first
from sweettok.tokenizer.model import SweetTok

PRECISIONS = ("no", "bf16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="MODEL", help="a trained tokenizer, of stage 1 or stage 2: a folder, or "
        "user/name on the hub")  # fmt: skip
    add("--data", required=True, metavar="LIST_OR_FOLDER", help="list file, CSV or folder of videos")
    add("--out", required=True, metavar="DIR", help="folder of the shards; those that are there are kept")
    add("--root", metavar="DIR", help="folder that paths in the list start from")
    add("--classes", metavar="FILE|N", help="class names, one a line, or just their number (default: the class "
        "folders, or as many as the highest label says)")  # fmt: skip
    add("--clips-per-video", type=int, default=1, metavar="N", help="clips from each video, their starts evenly spread "
        "over it (default: 1, its center)")  # fmt: skip
    add("--flips", action="store_true", help="and each clip once more, mirrored left to right")
    add("--given-frames", type=int, metavar="K", help="for frame prediction: beside the ids of each clip, those of its "
        "first K frames alone")  # fmt: skip
    add("--stride", type=int, default=1, help="distance of the frames in the video (default: 1)")
    add("--resize", choices=RESIZES, default="stretch")
    add("--short", choices=SHORT, default="black", help="what follows the end of a video that is too short")
    add("--batch-size", type=int, default=8)
    add("--workers", type=int, default=2, help="processes that read videos, for each device")
    add("--rows-per-shard", type=int, default=256, metavar="N", help="clips in a file")
    add("--limit", type=int, metavar="N", help="only the first N videos of the list")
    add("--precision", choices=PRECISIONS, default="no", help="no: float32 without TF32; bf16: faster, some ids differ")


def main(args: argparse.Namespace) -> None:
    """Write the shards that are missing in `args.out`; in several processes each its share.

    Raises FileNotFoundError and ValueError (also ClipError) naming what is wrong with the input.
    """
    for name, least in (("batch_size", 1), ("limit", 1), ("workers", 0)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(args, name)}")
    state = join_processes()
    tokenizer = SweetTok.from_pretrained(args.checkpoint)
    clips, num_classes = find_clips(args)
    manifest = describe(args, tokenizer, clips, num_classes)
    place = {"rank": state.process_index, "world_size": state.num_processes}
    writer = main_first(lambda: ShardWriter(args.out, manifest, clips.keys, clips.labels, **place))
    state.destroy_process_group()  # from here on nobody waits for anybody: shares may take very different times
    try:
        write_shards(args, tokenizer.to(state.device), clips, writer, state)
    except ClipError as error:
        raise ClipError(f"{error} (python -m sweettok.data scan finds all such clips of a list)") from error
    if state.is_main_process:
        missing = len(manifest.missing(args.out))
        told = f"; other processes have {missing} still to write" if missing else ""
        print(f"{args.out}: {manifest.num_rows} clips, {manifest.num_shards} shards{told}")


def find_clips(args: argparse.Namespace) -> tuple[ClipList, int]:
    """The clips to encode, and how many classes there are; 0 without labels."""
    classes = int(args.classes) if args.classes is not None and args.classes.isdecimal() else args.classes
    clips = load_clips(args.data, args.root, classes)
    if clips.labels is None:
        if classes is not None:
            raise ValueError(f"{args.data} has no labels: leave --classes out, or give a list with labels")
        num_classes = 0
    elif isinstance(classes, int):
        num_classes = classes
    else:
        num_classes = len(clips.class_names) if clips.class_names is not None else max(clips.labels) + 1
    return clips if args.limit is None else clips.subset(range(min(args.limit, len(clips)))), num_classes


def describe(args: argparse.Namespace, tokenizer: SweetTok, clips: ClipList, num_classes: int) -> TokenManifest:
    """The manifest of what is about to be written."""
    config = tokenizer.config
    if args.given_frames is not None:
        if args.given_frames >= config.num_frames:
            raise ValueError(
                f"--given-frames must be less than the {config.num_frames} frames of a clip, got {args.given_frames}"
            )
        config.check_clip(args.given_frames, config.height, config.width)
    names = ("stride", "resize", "short", "clips_per_video", "flips", "given_frames", "rows_per_shard")
    return TokenManifest(
        kind="tokenized",
        tokenizer_hash=tokenizer.ids_hash(),
        layout=tokenizer.layout,
        num_clips=len(clips),
        clips_hash=clips.hash,
        num_frames=config.num_frames,
        num_classes=num_classes,
        class_names=clips.class_names,
        settings={"precision": args.precision},
        **{name: getattr(args, name) for name in names},
    )


def write_shards(
    args: argparse.Namespace, tokenizer: SweetTok, clips: ClipList, writer: ShardWriter, state: PartialState
) -> None:
    """Encode and write what `writer` has still to write, while workers read the clips that come next."""
    config = tokenizer.config
    options = {name: getattr(args, name) for name in ("stride", "resize", "short", "clips_per_video", "flips")}
    dataset = ClipDataset(clips, config.num_frames, (config.height, config.width), "even", **options)
    shards = [(rows, batches(rows, args.batch_size)) for rows in writer.pending()]
    loader = iter(plain_errors(make_loader(dataset, [part for _, parts in shards for part in parts], args.workers)))
    hidden = None if state.is_main_process else True  # None: shown on terminals alone
    with tqdm(total=sum(len(rows) for rows, _ in shards), unit="clip", disable=hidden) as bar:
        for rows, parts in shards:
            encoded = []
            for _ in parts:
                video = next(loader)["video"].to(state.device, non_blocking=True)
                encoded.append(encode(tokenizer, video, args.given_frames, args.precision))
                bar.update(len(video))
            writer.write(rows, *(torch.cat(ids) for ids in zip(*encoded, strict=True)))


def batches(rows: range, size: int) -> list[range]:
    """Rows of a shard in runs of `size`. None reaches into another shard: no id depends on who writes which shard."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def encode(tokenizer: SweetTok, video: Tensor, given_frames: int | None, precision: str) -> tuple[Tensor, ...]:
    """uint8 (B, 3, T, H, W) -> ids (B, L) on the CPU; with given frames also the ids (B, L) of those alone."""
    clips = [video] if given_frames is None else [video, video[:, :, :given_frames]]
    with (
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        torch.autocast(video.device.type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        return tuple(tokenizer.encode(clip).ids.cpu() for clip in clips)
