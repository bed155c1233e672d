"""The sample command: new clips from a trained generator, as ids, as videos and as one sheet to look at.

A folder of samples holds
  shard-*.safetensors ...       token shards (`sweettok.data.tokens`, kind "generated"), in which row i is sample i
  videos/<class>_<number>.mp4   every sample as it is decoded
  contact_sheet.png, .mp4       some of them, for the eye: a row of frames each; all playing side by side
  decoded.json                  the tokenizer and the frame rate of the videos and sheets
What is there is not made again. Sample i depends on the seed, i and its condition, so any number of processes gives
the same ids: also the last batch of a process is filled up, as products of matrices of another size round differently.

Letters: B clips, T frames, H W pixels, L ids per clip.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from sweettok.data.tokens import MANIFEST, ShardWriter, TokenDataset, TokenManifest, clips_hash
from sweettok.data.writer import film_strip, mark, tile, write_png, write_video
from sweettok.distributed import join_processes, main_first
from sweettok.generator.config import SamplingConfig
from sweettok.generator.model import Generator
from sweettok.hub import CONFIG, WEIGHTS, model_folder
from sweettok.inference.tokenize import PRECISIONS
from sweettok.pixels import to_uint8
from sweettok.store import sha256, write_aside
from sweettok.tokenizer.model import SweetTok

ROWS_PER_SHARD = 16  # what a process takes at once, and at most loses when it is stopped, but for its batch
SHEET_ROWS, SHEET_PER_CLASS, SHEET_FRAMES = 64, 4, 5
SHEETS = ("contact_sheet.png", "contact_sheet.mp4")
UNSAFE = re.compile(r"[^\w.-]")  # in names of files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--generator", required=True, metavar="MODEL", help="a trained generator: a folder, or user/name on the hub")
    add("--tokenizer", required=True, metavar="MODEL", help="the tokenizer whose ids it writes, of stage 1 or stage 2")
    add("--out", required=True, metavar="DIR", help="folder of the samples; what is there is kept")
    count = parser.add_mutually_exclusive_group()
    count.add_argument("--per-class", type=int, metavar="N", help="samples of each class")
    count.add_argument("--num", type=int, metavar="N", help="samples in all, spread evenly over the classes (default "
                       "with --given: one for each of its rows)")  # fmt: skip
    add("--classes", nargs="+", metavar="CLASS", help="names or numbers from 0 (default: all)")
    add("--given", metavar="SHARDS", help="for frame prediction: folder that tokenize --given-frames wrote; sample i "
        "continues its row i. Videos show the sample as decoded, the given frames too")  # fmt: skip
    add("--cfg-scale", type=float, default=1.0, metavar="S", help="guidance towards the class (default: 1, none)")
    add("--cfg-schedule", choices=("constant", "linear"), default="constant", help="linear: from 1 at the first word")
    add("--temperature", type=float, default=1.0, help="0: always the likeliest word (default: 1)")
    add("--top-k", type=int, metavar="K", help="draw from the K likeliest words only")
    add("--top-p", type=float, metavar="P", help="draw from the likeliest words of joint probability P only")
    add("--seed", type=int, default=0)
    add("--batch-size", type=int, default=8, help="clips drawn or decoded at once, on each device")
    add("--fps", type=float, default=8, help="frames per second of the videos (default: 8)")
    add("--no-videos", action="store_true", help="no video of each sample; the sheets are made all the same")
    add("--precision", choices=PRECISIONS, default="no", help="no: float32; bf16: faster, some words differ")


@dataclass(frozen=True)
class Samples:
    """What to draw: names of the samples, and of each its class, the row of `given` it continues, or nothing."""

    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    given: TokenDataset | None = None

    def __len__(self) -> int:
        return len(self.names)

    def given_ids(self, rows: Sequence[int]) -> Tensor | None:
        """(B, L) ids of the clips of given frames."""
        return None if self.given is None else torch.stack([self.given[row]["given"] for row in rows])

    def condition(self, rows: Sequence[int]) -> dict[str, Any]:
        """What `Generator.sample` is told of the samples `rows`."""
        if self.labels is not None:
            return {"labels": [self.labels[row] for row in rows]}
        return {"num_samples": len(rows)} if self.given is None else {"given": self.given_ids(rows)}


def main(args: argparse.Namespace) -> None:
    """Draw and decode what is missing in `args.out`; in several processes each its share.

    Raises FileNotFoundError and ValueError saying what is wrong, before anything is drawn.
    """
    check_numbers(args)
    how = SamplingConfig(args.cfg_scale, args.cfg_schedule, args.temperature, args.top_k, args.top_p)
    args.generator, args.tokenizer = model_folder(args.generator), model_folder(args.tokenizer)
    state, out = join_processes(), Path(args.out)
    generator, tokenizer = Generator.from_pretrained(args.generator), SweetTok.from_pretrained(args.tokenizer)
    check_models(args, how, generator, tokenizer)
    samples = plan(args, generator)
    manifest = describe(args, how, generator, tokenizer, samples)
    check_folder(out, manifest)
    place = {"rank": state.process_index, "world_size": state.num_processes}
    writer = main_first(lambda: ShardWriter(out, manifest, samples.names, samples.labels, **place))
    main_first(lambda: settle_decoding(args))
    draw(args, how, generator.to(state.device), samples, writer)
    state.wait_for_everyone()
    state.destroy_process_group()
    tokens, tokenizer = TokenDataset(out), tokenizer.to(state.device)
    if not args.no_videos:
        write_videos(args, tokenizer, tokens, state)
    if state.is_main_process:
        write_sheets(args, tokenizer, tokens)
        print(f"{out}: {len(samples)} samples, {manifest.num_shards} shards, {', '.join(SHEETS)}")


def check_numbers(args: argparse.Namespace) -> None:
    for name in ("per_class", "num", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if not 0 < args.fps < math.inf:
        raise ValueError(f"--fps must be above 0, got {args.fps}")


def check_models(args: argparse.Namespace, how: SamplingConfig, generator: Generator, tokenizer: SweetTok) -> None:
    """Raise ValueError unless the tokenizer decodes what the generator writes, and the generator can be guided so."""
    ours, theirs = generator.config.tokenizer_hash, tokenizer.ids_hash()
    if ours != theirs:
        raise ValueError(
            f"the generator in {args.generator} writes ids of the tokenizer {str(ours)[:12]}, but {args.tokenizer} is "
            f"{theirs[:12]}: give the tokenizer that made its training shards (stage 1 or stage 2 of one encoder do)"
        )
    if tokenizer.pixel_decoder is None:
        raise ValueError(f"the tokenizer in {args.tokenizer} has no pixel decoder: give one of stage 1 or stage 2")
    if how.guided and not generator.sequence.null_class:
        raise ValueError(f"--cfg-scale needs a generator trained with classes and generator.class_dropout above 0, "
                         f"which that in {args.generator} is not: leave it out")  # fmt: skip


def plan(args: argparse.Namespace, generator: Generator) -> Samples:
    """Names and conditions of the samples that the command line asks for; sample i is of class classes[i % C]."""
    if (args.given is not None) != generator.sequence.given_clip:
        told = "continues" if args.given is None else "does not continue"
        raise ValueError(f"the generator in {args.generator} {told} given frames: --given is for those that do")
    if not generator.config.num_classes:
        if args.classes is not None or args.per_class is not None:
            raise ValueError(f"the generator in {args.generator} has no classes: leave --classes and --per-class out")
        given = None if args.given is None else given_clips(args, generator)
        number = len(given) if args.num is None and given is not None else args.num
        return Samples(tuple(f"sample_{i:06}" for i in range(settled(number))), given=given)
    classes = range(generator.config.num_classes) if args.classes is None else find_classes(args.classes, generator)
    number = settled(args.num if args.per_class is None else args.per_class * len(classes))
    labels = tuple(classes[i % len(classes)] for i in range(number))
    shown = [class_name(generator.class_names, label) for label in labels]
    return Samples(tuple(f"{UNSAFE.sub('_', name)}_{i:06}" for i, name in enumerate(shown)), labels)


def settled(number: int | None) -> int:
    if number is None:
        raise ValueError("how many samples? give --num, or --per-class where there are classes")
    return number


def class_name(names: tuple[str, ...] | None, label: int) -> str:
    return names[label] if names is not None else f"class{label}"


def find_classes(wanted: Sequence[str], generator: Generator) -> list[int]:
    """Class numbers from names or numbers. ValueError for an unknown class, naming the known ones."""
    names, count = generator.class_names or (), generator.config.num_classes
    chosen = [int(name) if name.isdecimal() and name not in names else name for name in wanted]
    if any(isinstance(label, int) and label >= count for label in chosen):
        known = f" ({', '.join(names)})" if names else ""
        raise ValueError(f"classes are numbered 0..{count - 1}{known}; got {' '.join(wanted)}")
    return generator.classes(chosen).tolist()


def given_clips(args: argparse.Namespace, generator: Generator) -> TokenDataset:
    """The shards to continue, or ValueError where they are not of this generator's tokenizer and given frames."""
    given, frames = TokenDataset(args.given), generator.config.given_frames
    given.check_tokenizer(generator.config.tokenizer_hash)
    if given.given_frames != frames:
        raise ValueError(f"the generator continues {frames} given frames, but {args.given} has {given.given_frames}: "
                         f"write it with tokenize --given-frames {frames}")  # fmt: skip
    if args.num is not None and args.num > len(given):
        raise ValueError(f"--num {args.num} is more than the {len(given)} rows of {args.given}")
    return given


def describe(
    args: argparse.Namespace, how: SamplingConfig, generator: Generator, tokenizer: SweetTok, samples: Samples
) -> TokenManifest:
    """The manifest of the samples; its settings are all that their ids depend on."""
    hashes = {"generator": sha256(args.generator / WEIGHTS), "generator_config": sha256(args.generator / CONFIG)}
    settings = {**hashes, "seed": args.seed, **asdict(how)}
    settings["precision"] = args.precision
    if samples.labels is not None:
        settings["classes"] = sorted(set(samples.labels))
    if samples.given is not None:
        facts = json.dumps(samples.given.manifest.to_dict(), sort_keys=True)
        settings["given"] = hashlib.sha256(facts.encode()).hexdigest()
    return TokenManifest(
        kind="generated",
        tokenizer_hash=generator.config.tokenizer_hash,
        layout=generator.sequence.layout,
        num_clips=len(samples),
        clips_hash=clips_hash(samples.names, samples.labels),
        num_frames=tokenizer.config.num_frames,
        given_frames=generator.config.given_frames,
        num_classes=generator.config.num_classes,
        class_names=generator.class_names,
        rows_per_shard=ROWS_PER_SHARD,
        settings=settings,
    )


def check_folder(out: Path, manifest: TokenManifest) -> None:
    """Raise ValueError where `out` holds samples drawn otherwise, or another number of them, naming what differs."""
    if not (out / MANIFEST).is_file():
        return
    theirs, mine = (
        {"kind": found.kind, "samples": found.num_clips, **found.settings}
        for found in (TokenManifest.read(out), manifest)
    )
    told = differences(theirs, mine)
    if told:
        raise ValueError(f"{out} holds samples with {told}: go on with the settings that it was begun with, or choose "
                         "another folder (of one seed, more samples begin with the same ones)")  # fmt: skip


def differences(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    wrong = [name for name in mine if theirs.get(name) != mine[name]]
    return ", ".join(f"{name} {theirs.get(name)} instead of {mine[name]}" for name in wrong)


def settle_decoding(args: argparse.Namespace) -> None:
    """Write decoded.json, or raise ValueError where the folder's videos are of another tokenizer or frame rate."""
    path = Path(args.out) / "decoded.json"
    mine = {"tokenizer": sha256(args.tokenizer / CONFIG, args.tokenizer / WEIGHTS), "fps": args.fps}
    if not path.is_file():
        with write_aside(path) as aside:
            aside.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
    told = differences(json.loads(path.read_text(encoding="utf-8")), mine)
    if told:
        raise ValueError(f"{args.out} holds videos with {told}: to decode its samples anew, delete its videos, "
                         f"{', '.join(SHEETS)} and {path.name}")  # fmt: skip


def draw(
    args: argparse.Namespace, how: SamplingConfig, generator: Generator, samples: Samples, writer: ShardWriter
) -> None:
    """Draw and write the shards that `writer` has still to write, in batches of one size that may end anywhere."""
    pending, drawn = writer.pending(), []
    rows = [row for shard in pending for row in shard]
    size = min(args.batch_size, len(samples))
    total, hidden = len(rows) * generator.sequence.layout.length, None if writer.rank == 0 else True
    with tqdm(total=total, desc="drawing", unit="word", unit_scale=True, disable=hidden) as bar:
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            filled = part + part[-1:] * (size - len(part))
            with autocast(args, generator):
                ids = generator.sample(
                    **samples.condition(filled), indices=filled, seed=args.seed, **asdict(how),
                    progress=lambda words, clips=part: bar.update(words * len(clips)),
                )  # fmt: skip
            drawn += ids[: len(part)].cpu()
            while pending and len(drawn) >= len(pending[0]):
                shard = pending.pop(0)
                writer.write(shard, torch.stack(drawn[: len(shard)]), samples.given_ids(shard))
                del drawn[: len(shard)]


def autocast(args: argparse.Namespace, model: torch.nn.Module) -> torch.autocast:
    return torch.autocast(device_of(model).type, torch.bfloat16, enabled=args.precision == "bf16")


def device_of(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def decode(
    args: argparse.Namespace, tokenizer: SweetTok, tokens: TokenDataset, rows: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """Each row of `rows` and its clip, uint8 (3, T, H, W) on the CPU."""
    for start in range(0, len(rows), args.batch_size):
        part = rows[start : start + args.batch_size]
        with autocast(args, tokenizer):
            clips = tokenizer.decode(torch.stack([tokens[row]["ids"] for row in part]).to(device_of(tokenizer)))
        yield from zip(part, to_uint8(clips).cpu(), strict=True)


def write_videos(args: argparse.Namespace, tokenizer: SweetTok, tokens: TokenDataset, state: PartialState) -> None:
    """One MP4 a sample, exactly the decoded frames; those that are there stay as they are."""
    paths = [tokens.folder / "videos" / f"{key}.mp4" for key in tokens.keys]
    rows = [row for row in range(state.process_index, len(tokens), state.num_processes) if not paths[row].is_file()]
    with tqdm(total=len(rows), desc="decoding", unit="clip", disable=None if state.is_main_process else True) as bar:
        for row, clip in decode(args, tokenizer, tokens, rows):
            write_video(paths[row], clip, args.fps)
            bar.update(1)


def write_sheets(args: argparse.Namespace, tokenizer: SweetTok, tokens: TokenDataset) -> None:
    """Some samples, by class: a row of frames each as a picture, and all playing side by side as a video."""
    if all((tokens.folder / name).is_file() for name in SHEETS):
        return
    strips, clips = [], []
    for row, clip in decode(args, tokenizer, tokens, sheet_rows(tokens.labels, len(tokens))):
        name = tokens.keys[row] if tokens.labels is None else class_name(tokens.class_names, tokens.labels[row])
        strip = film_strip(clip, min(SHEET_FRAMES, clip.shape[1]))
        strips.append(mark(strip[:, None], name)[:, 0])
        clips.append(mark(clip, name))
    picture, video = (tokens.folder / name for name in SHEETS)
    write_png(picture, torch.cat(strips, dim=1))
    write_video(video, tile(clips, math.ceil(math.sqrt(len(clips)))), args.fps)


def sheet_rows(labels: Sequence[int] | None, number: int) -> list[int]:
    """Which samples are on the sheets: the first of each class, or the first of all where there are no classes."""
    if labels is None:
        return list(range(min(number, SHEET_ROWS)))
    classes = sorted(set(labels))[:SHEET_ROWS]
    each = min(SHEET_PER_CLASS, SHEET_ROWS // len(classes))
    return [row for label in classes for row in [i for i in range(number) if labels[i] == label][:each]]
