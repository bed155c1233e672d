"""The reconstruct command: for each video or image, files to look at and files to compute with."""

from __future__ import annotations

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

from sweettok.data.preprocess import open_frames
from sweettok.data.reader import VideoInfo, probe, read_clip
from sweettok.data.writer import compare, film_strip, write_png, write_video
from sweettok.distributed import join_processes
from sweettok.eval.metrics import frame_psnr, psnr
from sweettok.eval.report import write_json
from sweettok.eval.tokenizers import load_tokenizer, round_trip
from sweettok.pixels import to_uint8
from sweettok.store import check_apart, write_aside
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.output import TokenOutput
from sweettok.video.files import DEFAULT_FPS
from sweettok.video.long import clip_length, decode_blocks, encode_long
from sweettok.video.seams import FrameSteps, seam_excess

STRIP_FRAMES = 6
NUM_QUERIES = 8  # of each side, whose words are written out
WRITTEN = ("mp4", "png", "json", "safetensors")  # kinds of files for each video
LABELS = ("original", "reconstruction", "difference")


@torch.no_grad()
def reconstruct(
    videos: Sequence[str | Path],
    checkpoint: str | Path,
    out: str | Path,
    position: str = "center",
    whole: bool = False,
    aspect: str = "stretch",
) -> Iterator[dict[str, Any]]:
    """Send one clip of each video, or an image, through a tokenizer and write what came of it; yields their summaries.

    Into `out`, by the video's name: NAME.mp4 (original | reconstruction | difference), NAME.png (frames of it),
    NAME.safetensors (`ids`, ready for `decode`) and NAME.json (PSNR of every frame, layout of the ids, first words).
    `whole` sends all of a video through a SweetTok, in memory that does not grow with its length: NAME.safetensors is
    then for `LongTokens.load`, and `seams` tells how much more the picture jumps between clips (`seam_metric`).
    `aspect` is that of `Fit`; stretched frames are those that the protocols of `rfvd` measure by default.
    Videos of one name get numbers. Raises FileNotFoundError and ValueError (also ClipError) naming the file.
    """
    tokenizer = load_tokenizer(checkpoint).to(join_processes().device)
    if whole and not isinstance(tokenizer, SweetTok):
        raise ValueError(f"{checkpoint} holds a {type(tokenizer).__name__}: whole videos are for a SweetTok")
    names = unique_names(videos)
    check_apart(videos, (Path(out) / f"{name}.{kind}" for name in names for kind in WRITTEN))
    for path, name in zip(videos, names, strict=True):
        stem, info = Path(out) / name, probe(path)
        told = _whole(tokenizer, path, stem, aspect) if whole else _clip(tokenizer, path, stem, position, aspect, info)
        facts = {"video": str(path), "source": asdict(info), **told}
        write_json(f"{stem}.json", facts)
        yield {**facts, "files": f"{stem}.{{{','.join(WRITTEN)}}}"}


def _clip(tokenizer: Any, path: str | Path, stem: Path, position: str, aspect: str, info: VideoInfo) -> dict[str, Any]:
    config = tokenizer.config
    size = config.height, config.width
    frames = clip_length(tokenizer) if isinstance(tokenizer, SweetTok) else config.num_frames
    clip = read_clip(path, frames, size, position, resize=aspect)
    trip = round_trip(tokenizer, clip[None].to(next(tokenizer.parameters()).device))
    shown = to_uint8(trip.video).cpu()
    write_video(f"{stem}.mp4", compare(clip, shown[0], labels=LABELS), info.fps or DEFAULT_FPS)
    _write_strip(stem, clip, shown[0])
    with write_aside(Path(f"{stem}.safetensors")) as aside:
        aside.write_bytes(save({"ids": trip.ids.cpu().contiguous()}))
    return {
        "clip": {"position": position, "frames": clip.shape[1], "height": config.height, "width": config.width},
        "aspect": aspect,
        "repeated_frames": max(0, clip.shape[1] - info.num_frames),
        "psnr": psnr(clip[None], shown).item(),
        "psnr_per_frame": frame_psnr(clip[None], shown)[0].tolist(),
        "ids_per_clip": trip.ids[0].numel(),
        "bits_per_clip": trip.bits,
        **_meaning(trip.output, trip.sizes.get("code")),
    }


def _whole(tokenizer: SweetTok, path: str | Path, stem: Path, aspect: str) -> dict[str, Any]:
    tokens = encode_long(tokenizer, path, aspect=aspect)
    tokens.save(f"{stem}.safetensors")
    scores, strip, steps = [], [], (FrameSteps(), FrameSteps())
    places = set(np.linspace(0, tokens.chunks.num_frames - 1, STRIP_FRAMES).round().astype(int))

    def panes() -> Iterator[Tensor]:
        with open_frames(path, aspect, tokens.fit.size) as stream:
            for block in decode_blocks(tokenizer, tokens, undo_aspect=False):
                pair = torch.stack(list(islice(stream.frames, block.shape[1])), dim=1), to_uint8(block)
                kept = [place for place in range(block.shape[1]) if len(scores) + place in places]
                strip.append([video[:, kept] for video in pair])
                scores.extend(frame_psnr(*(video[None] for video in pair))[0].tolist())
                for each, video in zip(steps, pair, strict=True):
                    each.add(video)
                yield compare(*pair, labels=LABELS)

    write_video(f"{stem}.mp4", panes(), tokens.fps or DEFAULT_FPS)
    _write_strip(stem, *(torch.cat(side, dim=1) for side in zip(*strip, strict=True)))
    errors = 10 ** (-torch.tensor(scores, dtype=torch.float64) / 10)
    return {
        "aspect": aspect,
        "chunks": asdict(tokens.chunks),
        "clips": len(tokens.ids),
        "psnr": -10 * errors.mean().log10().item(),
        "psnr_per_frame": scores,
        "seams": seam_excess(steps[1].values, tokens.chunks, steps[0].values),
        "ids_per_clip": tokens.layout.length,
        "bits_per_clip": tokens.layout.bits,
        **_meaning(tokens.output),
    }


def unique_names(paths: Sequence[str | Path]) -> list[str]:
    """File names without suffix; repeated ones get -1, -2, ... in order."""
    stems = [Path(path).stem for path in paths]
    total, seen, names = Counter(stems), Counter(), []
    for stem in stems:
        name = stem
        while total[stem] > 1 and name in total:  # numbers that another file has as its name are left out
            seen[stem] += 1
            name = f"{stem}-{seen[stem]}"
        names.append(name)
    return names


def _meaning(output: TokenOutput | Tensor, codes: int | None = None) -> dict[str, Any]:
    """How to read the ids: segments and first words of a language tokenizer, the grid of a plain one."""
    if isinstance(output, Tensor):
        return {"grid": list(output.shape[1:]), "codes": codes, "words": {}}
    segments = [asdict(segment) for segment in output.layout.segments]
    return {"segments": segments, "words": output.words(max_queries=NUM_QUERIES)}


def _write_strip(stem: Path, clip: Tensor, shown: Tensor) -> None:
    columns = min(STRIP_FRAMES, clip.shape[1])
    rows = compare(clip, shown).chunk(3, dim=3)
    write_png(f"{stem}.png", torch.cat([film_strip(row, columns) for row in rows], dim=1))
