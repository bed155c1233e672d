"""Samples of a trained generator, as ids, videos and contact sheets.

A folder of samples holds
  shard-*.safetensors ...       token shards (`sweettok.data.tokens`, kind "generated"); row i is sample i
  videos/<class>_<number>.mp4   every sample, decoded
  contact_sheet.png, .mp4       some samples: a row of frames each; all clips side by side
  decoded.json                  the tokenizer and the frame rate of the videos and sheets
Existing files are kept. Sample i depends only on the seed, i and its condition, not on the number of processes; the
last batch of a process is filled up, because matrix products of other sizes round differently.

Letters: B clips, T frames, H W pixels, L ids per clip.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sweettok.data.lists import clips_hash
from sweettok.data.manifest import MANIFEST, TokenManifest
from sweettok.data.tokens import ShardWriter, TokenDataset
from sweettok.data.writer import enlarge, film_strip, tile, titled, write_png, write_video
from sweettok.distributed import from_main, join_processes, main_first
from sweettok.generator.config import SamplingConfig
from sweettok.generator.model import Generator
from sweettok.hub import CONFIG, WEIGHTS, model_folder
from sweettok.pixels import to_uint8
from sweettok.store import check_output, sha256, write_aside
from sweettok.tokenizer.model import SweetTok

ROWS_PER_SHARD = 16  # samples of a file; a process that is stopped loses at most these and its batch
SHEET_ROWS, SHEET_PER_CLASS, SHEET_FRAMES, SHEET_HEIGHT = 64, 4, 6, 128
SHEETS = ("contact_sheet.png", "contact_sheet.mp4")
UNSAFE = re.compile(r"[^\w.-]")  # in file names


@dataclass(frozen=True)
class SampleSettings:
    """Settings of `sample`."""

    how: SamplingConfig = SamplingConfig()  # how ids are drawn
    seed: int = 0
    batch_size: int = 8  # clips drawn or decoded at once, on each device
    fps: float = 8.0  # frames per second of the videos
    videos: bool = True  # write a video of each sample; the contact sheets are always written
    precision: str = "auto"  # "no" is float32; "bf16" is faster, and some ids differ; "auto": bf16 except on CPUs
    compiled: bool = False  # draw by compiled graphs, see `Generator.sample`

    def autocast(self, model: nn.Module) -> torch.autocast:
        return torch.autocast(next(model.parameters()).device.type, torch.bfloat16, enabled=self.precision == "bf16")


@dataclass(frozen=True)
class Samples:
    """Names of samples, and either their classes or the shards that they continue, or neither."""

    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    given: TokenDataset | None = None  # sample i continues row i

    def __len__(self) -> int:
        return len(self.names)

    def given_ids(self, rows: Sequence[int]) -> Tensor | None:
        """(B, L) ids of the clips of given frames."""
        return None if self.given is None else torch.stack([self.given[row]["given"] for row in rows])

    def condition(self, rows: Sequence[int]) -> dict[str, Any]:
        """The condition of these samples, as arguments of `Generator.sample`."""
        if self.labels is not None:
            return {"labels": [self.labels[row] for row in rows]}
        return {"num_samples": len(rows)} if self.given is None else {"given": self.given_ids(rows)}


def sample(
    generator: str | Path,
    tokenizer: str | Path,
    out: str | Path,
    settings: SampleSettings = SampleSettings(),
    **wanted: Any,
) -> Samples:
    """Draw and decode the missing samples of the folder `out`, each process its share.

    Args:
        generator, tokenizer: folders, or names on the hub; the tokenizer must be that of the generator's training.
        wanted: arguments of `plan`.

    Raises FileNotFoundError or ValueError for wrong arguments, before anything is drawn.
    """
    places = model_folder(generator, "Generator"), model_folder(tokenizer)
    state, out = join_processes(), Path(out)
    if settings.precision == "auto":
        settings = replace(settings, precision="no" if state.device.type == "cpu" else "bf16")
    writer_model, tok = Generator.from_pretrained(places[0]), SweetTok.from_pretrained(places[1])
    check_models(generator, writer_model, tokenizer, tok, settings.how)
    samples = plan(writer_model, **wanted)
    manifest = make_manifest(places[0], writer_model, tok, samples, settings)
    from_main(lambda: check_folder(out, manifest))
    from_main(lambda: [check_output(out / name) for name in SHEETS])
    rank, world_size = state.process_index, state.num_processes
    writer = main_first(lambda: ShardWriter(out, manifest, samples.names, samples.labels, rank, world_size))
    from_main(lambda: check_decoding(out, places[1], settings.fps))
    draw(writer_model.to(state.device), samples, writer, settings)
    state.wait_for_everyone()
    state.destroy_process_group()
    tokens, tok = TokenDataset(out), tok.to(state.device)
    if settings.videos:
        write_videos(tok, tokens, settings, range(rank, len(tokens), world_size))
    if state.is_main_process:
        write_sheets(tok, tokens, settings)
    return samples


def plan(
    generator: Generator,
    *,
    num: int | None = None,
    per_class: int | None = None,
    classes: Sequence[str] | None = None,
    given: str | Path | None = None,
) -> Samples:
    """Names and conditions of samples; sample i has class classes[i % number of classes].

    Args:
        num: number of samples; by default one for each row of `given`.
        per_class: instead, number of samples of each class.
        classes: names or numbers, from 0; by default all.
        given: for frame prediction, a folder of token shards with given frames; sample i continues its row i.

    Raises ValueError for arguments that do not fit the generator.
    """
    if (given is not None) != generator.sequence.given_clip:
        verb = "continues" if given is None else "does not continue"
        raise ValueError(f"this generator {verb} given frames: `given` is for those that do")
    if not generator.config.num_classes:
        if classes is not None or per_class is not None:
            raise ValueError("this generator has no classes: leave classes and per_class out")
        clips = None if given is None else given_clips(given, generator, num)
        count = check_count(len(clips) if num is None and clips is not None else num)
        return Samples(tuple(f"sample_{i:06}" for i in range(count)), given=clips)
    chosen = range(generator.config.num_classes) if classes is None else find_classes(classes, generator)
    count = check_count(num if per_class is None else per_class * len(chosen))
    labels = tuple(chosen[i % len(chosen)] for i in range(count))
    shown = [class_name(generator.class_names, label) for label in labels]
    return Samples(tuple(f"{UNSAFE.sub('_', name)}_{i:06}" for i, name in enumerate(shown)), labels)


def check_count(number: int | None) -> int:
    if number is None or number < 1:
        raise ValueError(f"how many samples? give num of at least 1, or per_class with classes; got {number}")
    return number


def class_name(names: tuple[str, ...] | None, label: int) -> str:
    return names[label] if names is not None else f"class{label}"


def find_classes(wanted: Sequence[str], generator: Generator) -> list[int]:
    """Class numbers of names or numbers. Raises ValueError for unknown classes."""
    names, count = generator.class_names or (), generator.config.num_classes
    chosen = [int(name) if name.isdecimal() and name not in names else name for name in wanted]
    if any(isinstance(label, int) and label >= count for label in chosen):
        known = f" ({', '.join(names)})" if names else ""
        raise ValueError(f"classes are numbered 0..{count - 1}{known}; got {' '.join(wanted)}")
    return generator.classes(chosen).tolist()


def given_clips(folder: str | Path, generator: Generator, num: int | None) -> TokenDataset:
    """The shards to continue. Raises ValueError for another tokenizer or number of frames, and for too few rows."""
    given, frames = TokenDataset(folder), generator.config.given_frames
    given.check_tokenizer(generator.config.tokenizer_hash)
    if given.given_frames != frames:
        raise ValueError(
            f"the generator continues {frames} given frames, but {folder} has {given.given_frames}: "
            f"write it with sweettok tokenize --given-frames {frames}"
        )
    if num is not None and num > len(given):
        raise ValueError(f"num {num} is more than the {len(given)} rows of {folder}")
    return given


def check_models(
    generator: str | Path, model: Generator, tokenizer: str | Path, tok: SweetTok, how: SamplingConfig
) -> None:
    """Raise ValueError unless the tokenizer fits the generator, and the generator supports the guidance."""
    ours, theirs = model.config.tokenizer_hash, tok.ids_hash()
    if ours != theirs:
        raise ValueError(
            f"the generator in {generator} writes ids of the tokenizer {str(ours)[:12]}, but {tokenizer} is "
            f"{theirs[:12]}: give the tokenizer that made its training shards (stage 1 or stage 2 of one encoder)"
        )
    if tok.pixel_decoder is None:
        raise ValueError(f"the tokenizer in {tokenizer} has no pixel decoder: give one of stage 1 or stage 2")
    if how.guided and not model.sequence.null_class:
        raise ValueError(
            "cfg_scale needs a generator trained with classes and generator.class_dropout above 0, "
            f"which that in {generator} is not: leave it out"
        )


def make_manifest(
    folder: Path, generator: Generator, tokenizer: SweetTok, samples: Samples, settings: SampleSettings
) -> TokenManifest:
    """The manifest of the samples; its settings are everything that their ids depend on."""
    decisive: dict[str, Any] = {
        "generator": sha256(folder / WEIGHTS),
        "generator_config": sha256(folder / CONFIG),
        "seed": settings.seed,
        **asdict(settings.how),
        "precision": settings.precision,
    }
    if samples.labels is not None:
        decisive["classes"] = sorted(set(samples.labels))
    if samples.given is not None:
        facts = json.dumps(samples.given.manifest.to_dict(), sort_keys=True)
        decisive["given"] = hashlib.sha256(facts.encode()).hexdigest()
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
        settings=decisive,
    )


def check_folder(out: Path, manifest: TokenManifest) -> None:
    """Raise ValueError if `out` holds samples of other settings, or another number."""
    if (out / MANIFEST).is_file():
        found, new = (
            {"kind": about.kind, "samples": about.num_clips, **about.settings}
            for about in (TokenManifest.read(out), manifest)
        )
        remedy = "use the settings of the first call, or another folder (more samples of a seed begin with the same)"
        refuse_differences(found, new, f"{out} holds samples", remedy)


def check_decoding(out: Path, tokenizer: Path, fps: float) -> None:
    """Write decoded.json; raise ValueError if the folder's videos have another tokenizer or frame rate."""
    path, new = out / "decoded.json", {"tokenizer": sha256(tokenizer / CONFIG, tokenizer / WEIGHTS), "fps": fps}
    if not path.is_file():
        with write_aside(path) as aside:
            aside.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    remedy = f"to decode its samples again, delete its videos, {', '.join(SHEETS)} and {path.name}"
    refuse_differences(found, new, f"{out} holds videos", remedy)


def refuse_differences(found: dict[str, Any], new: dict[str, Any], what: str, remedy: str) -> None:
    """Raise ValueError if entries of `new` differ from `found`."""
    wrong = [f"{name} {found.get(name)} instead of {new[name]}" for name in new if found.get(name) != new[name]]
    if wrong:
        raise ValueError(f"{what} with {', '.join(wrong)}: {remedy}")


def draw(generator: Generator, samples: Samples, writer: ShardWriter, settings: SampleSettings) -> None:
    """Draw and write the missing shards, in batches of one size, independent of the size of shards."""
    pending, drawn = writer.pending(), []
    rows = [row for shard in pending for row in shard]
    size = min(settings.batch_size, len(samples))
    total, hidden = len(rows) * generator.sequence.layout.length, None if writer.rank == 0 else True
    with tqdm(total=total, desc="drawing", unit="id", unit_scale=True, disable=hidden) as bar:
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            filled = part + part[-1:] * (size - len(part))
            options = {**samples.condition(filled), **asdict(settings.how), "seed": settings.seed}
            options["compiled"] = settings.compiled
            with settings.autocast(generator):
                ids = generator.sample(
                    indices=filled, progress=lambda count, clips=part: bar.update(count * len(clips)), **options
                )
            drawn += ids[: len(part)].cpu()
            while pending and len(drawn) >= len(pending[0]):
                shard = pending.pop(0)
                writer.write(shard, torch.stack(drawn[: len(shard)]), samples.given_ids(shard))
                del drawn[: len(shard)]


def decode(
    tokenizer: SweetTok, tokens: TokenDataset, settings: SampleSettings, rows: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """Yield each of `rows` with its clip, uint8 (3, T, H, W) on the CPU."""
    for start in range(0, len(rows), settings.batch_size):
        part = rows[start : start + settings.batch_size]
        with settings.autocast(tokenizer):
            clips = tokenizer.decode(torch.stack([tokens[row]["ids"] for row in part]))
        yield from zip(part, to_uint8(clips).cpu(), strict=True)


def write_videos(tokenizer: SweetTok, tokens: TokenDataset, settings: SampleSettings, share: range) -> None:
    """Write the missing videos of the rows in `share`."""
    paths = [tokens.folder / "videos" / f"{key}.mp4" for key in tokens.keys]
    rows = [row for row in share if not paths[row].is_file()]
    with tqdm(total=len(rows), desc="decoding", unit="clip", disable=True if share.start else None) as bar:
        for row, clip in decode(tokenizer, tokens, settings, rows):
            write_video(paths[row], clip, settings.fps)
            bar.update(1)


def write_sheets(tokenizer: SweetTok, tokens: TokenDataset, settings: SampleSettings) -> None:
    """Write the contact sheets, ordered by class."""
    if all((tokens.folder / name).is_file() for name in SHEETS):
        return
    strips, clips = [], []
    for row, clip in decode(tokenizer, tokens, settings, sheet_rows(tokens.labels, len(tokens))):
        name = tokens.keys[row] if tokens.labels is None else class_name(tokens.class_names, tokens.labels[row])
        clip = enlarge(clip, SHEET_HEIGHT)
        strip = film_strip(clip, min(SHEET_FRAMES, clip.shape[1]))
        strips.append(titled(strip[:, None], name)[:, 0])
        clips.append(titled(clip, name))
    picture, video = (tokens.folder / name for name in SHEETS)
    write_png(picture, torch.cat(strips, dim=1))
    write_video(video, tile(clips, math.ceil(math.sqrt(len(clips)))), settings.fps)


def sheet_rows(labels: Sequence[int] | None, number: int) -> list[int]:
    """Rows of the samples on the sheets: the first of each class; without classes, the first of all."""
    if labels is None:
        return list(range(min(number, SHEET_ROWS)))
    classes = sorted(set(labels))[:SHEET_ROWS]
    each = min(SHEET_PER_CLASS, SHEET_ROWS // len(classes))
    return [row for label in classes for row in [i for i in range(number) if labels[i] == label][:each]]
