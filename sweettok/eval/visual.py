"""Reconstructions of single videos or images, written as videos, pictures, ids and scores."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from sweettok.data.preprocess import Preprocessing
from sweettok.data.reader import VideoInfo, clip_places, probe
from sweettok.data.writer import compare, enlarge, film_strip, titled, write_png, write_video
from sweettok.distributed import join_processes
from sweettok.eval.metrics import frame_psnr, psnr
from sweettok.eval.report import write_json
from sweettok.eval.tokenizers import clip_frames, load_tokenizer, preprocessing_of, round_trip
from sweettok.pixels import to_uint8
from sweettok.store import check_output, write_aside
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.output import TokenOutput
from sweettok.video.long import DEFAULT_FPS
from sweettok.video.seams import FrameSteps, seam_excess

STRIP_FRAMES = 6
NUM_QUERIES = 8  # queries of each branch whose words are in the summary
SUFFIXES = (".mp4", ".png", ".json", ".safetensors")  # output files of each video
KIND = "reconstruction"
LABELS = ("original", "reconstruction", "difference")


@torch.no_grad()
def reconstruct(
    videos: Sequence[str | Path],
    checkpoint: str | Path,
    out: str | Path,
    whole: bool = False,
    start: int | None = None,
    **preprocessing: Any,
) -> Iterator[dict[str, Any]]:
    """Encode and decode one clip of each video, or an image, and write the results; yields a summary of each.

    Files in `out`: NAME.mp4 (original | reconstruction | difference), NAME.png (some of its frames), NAME.safetensors
    (`ids` for `decode`) and NAME.json (the summary: PSNR of each frame, layout of the ids, first words). NAME is the
    video's file name; videos of the same name are numbered.

    Args:
        checkpoint: a model's folder, or its name on the hub.
        whole: all frames of each video instead of one clip, in constant memory (SweetTok only). NAME.safetensors is
            then for `LongTokens.load`, and the summary has `seams` as in `seam_metric`.
        start: first frame of the clip, instead of a position.
        preprocessing: fields of the model's `Preprocessing` to override: resize, position, stride.

    Raises:
        FileNotFoundError, ValueError (also ClipError): a file cannot be read, or would be overwritten.
    """
    state = join_processes()
    tokenizer = load_tokenizer(checkpoint).to(state.device)
    if whole and not isinstance(tokenizer, SweetTok):
        raise ValueError(f"{checkpoint} holds a {type(tokenizer).__name__}: whole videos are for a SweetTok")
    if whole and (start is not None or "position" in preprocessing):
        raise ValueError("a whole video is encoded from its first frame to its last: omit position and start")
    steps = preprocessing_of(tokenizer).override(**preprocessing)
    names = unique_names(videos)
    for path in (Path(out) / f"{name}{suffix}" for name in names for suffix in SUFFIXES):
        check_output(path, inputs=videos, owned=_is_own if path.suffix in (".json", ".safetensors") else None)
    share = slice(state.process_index, None, state.num_processes)
    for path, name in list(zip(videos, names, strict=True))[share]:
        stem, info = Path(out) / name, probe(path)
        facts = {"kind": KIND, "video": str(path), "source": asdict(info)}
        facts |= _whole(tokenizer, path, stem, steps) if whole else _clip(tokenizer, path, stem, steps, start, info)
        write_json(f"{stem}.json", facts)
        yield {**facts, "files": f"{stem}.{{{','.join(suffix[1:] for suffix in SUFFIXES)}}}"}


def _is_own(path: Path) -> bool:
    """Whether a file was written by an earlier reconstruction: its summary is in the same folder."""
    try:
        return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["kind"] == KIND
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _clip(
    tokenizer: Any, path: str | Path, stem: Path, steps: Preprocessing, start: int | None, info: VideoInfo
) -> dict[str, Any]:
    config = tokenizer.config
    clip = steps.read(path, clip_frames(tokenizer), (config.height, config.width), start)
    found = len(clip_places(info.num_frames, clip.shape[1], steps.position, steps.stride, start))
    trip = round_trip(tokenizer, clip[None].to(next(tokenizer.parameters()).device))
    shown = to_uint8(trip.video).cpu()
    write_video(f"{stem}.mp4", compare(clip, shown[0], labels=LABELS), info.fps or DEFAULT_FPS)
    _write_strip(stem, clip, shown[0])
    with write_aside(Path(f"{stem}.safetensors")) as aside:
        aside.write_bytes(save({"ids": trip.ids.cpu().contiguous()}))
    return {
        "clip": {"frames": clip.shape[1], "height": config.height, "width": config.width, "start": start},
        "preprocessing": asdict(steps),
        "missing_frames": clip.shape[1] - found,
        "psnr": psnr(clip[None], shown).item(),
        "psnr_per_frame": frame_psnr(clip[None], shown)[0].tolist(),
        "ids_per_clip": trip.ids[0].numel(),
        "bits_per_clip": trip.bits,
        **_meaning(trip.output, trip.sizes.get("code")),
    }


def _whole(tokenizer: SweetTok, path: str | Path, stem: Path, preprocessing: Preprocessing) -> dict[str, Any]:
    tokens = tokenizer.encode_long(path, resize=preprocessing.resize, stride=preprocessing.stride)
    tokens.save(f"{stem}.safetensors")
    scores, strip, changes = [], [], (FrameSteps(), FrameSteps())
    shown = set(np.linspace(0, tokens.chunks.num_frames - 1, STRIP_FRAMES).round().astype(int))

    def panes() -> Iterator[Tensor]:
        with tokenizer.open_long(path, preprocessing.resize, tokens.stride) as (stream, _):
            for block in tokenizer.decode_blocks(tokens, undo_resize=False):
                pair = torch.stack(list(islice(stream.frames, block.shape[1])), dim=1), to_uint8(block)
                kept = [i for i in range(block.shape[1]) if len(scores) + i in shown]
                strip.append([video[:, kept] for video in pair])
                scores.extend(frame_psnr(*(video[None] for video in pair))[0].tolist())
                for each, video in zip(changes, pair, strict=True):
                    each.add(video)
                yield compare(*pair, labels=LABELS)

    write_video(f"{stem}.mp4", panes(), tokens.fps or DEFAULT_FPS)
    _write_strip(stem, *(torch.cat(side, dim=1) for side in zip(*strip, strict=True)))
    errors = 10 ** (-torch.tensor(scores, dtype=torch.float64) / 10)
    return {
        "preprocessing": {"resize": preprocessing.resize, "stride": preprocessing.stride},
        "chunks": asdict(tokens.chunks),
        "clips": len(tokens.ids),
        "psnr": -10 * errors.mean().log10().item(),
        "psnr_per_frame": scores,
        "seams": seam_excess(changes[1].values, tokens.chunks, changes[0].values),
        "ids_per_clip": tokens.layout.length,
        "bits_per_clip": tokens.layout.bits,
        **_meaning(tokens.output),
    }


def unique_names(paths: Sequence[str | Path]) -> list[str]:
    """File names without suffix; repeated ones get the suffixes -1, -2, ... in order."""
    stems = [Path(path).stem for path in paths]
    total, seen, names = Counter(stems), Counter(), []
    for stem in stems:
        name = stem
        while total[stem] > 1 and name in total:  # skip numbers that are part of another file's name
            seen[stem] += 1
            name = f"{stem}-{seen[stem]}"
        names.append(name)
    return names


def _meaning(output: TokenOutput | Tensor, codes: int | None = None) -> dict[str, Any]:
    """Layout of the ids: segments and first words of a SweetTok, or the grid of codes."""
    if isinstance(output, Tensor):
        return {"grid": list(output.shape[1:]), "codes": codes, "words": {}}
    segments = [asdict(segment) for segment in output.layout.segments]
    return {"segments": segments, "words": output.words(max_queries=NUM_QUERIES)}


def _write_strip(stem: Path, clip: Tensor, shown: Tensor) -> None:
    columns = min(STRIP_FRAMES, clip.shape[1])
    rows = zip(compare(clip, shown).chunk(3, dim=3), LABELS, strict=True)
    strips = [titled(film_strip(enlarge(row), columns)[:, None], label)[:, 0] for row, label in rows]
    write_png(f"{stem}.png", torch.cat(strips, dim=1))
