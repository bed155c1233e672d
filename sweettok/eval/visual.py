"""The reconstruct command: for each video or image, files to look at and files to compute with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save
from torch import Tensor

from sweettok.data.lists import IMAGE_SUFFIXES
from sweettok.data.reader import probe, read_clip, read_image
from sweettok.data.writer import compare, film_strip, write_aside, write_png, write_video
from sweettok.eval.metrics import frame_psnr, psnr
from sweettok.eval.report import write_json
from sweettok.eval.tokenizers import RoundTrip, load_tokenizer, round_trip
from sweettok.pixels import to_uint8

STRIP_FRAMES = 6
NUM_QUERIES = 8  # of each side, whose words are written out
DEFAULT_FPS = 25.0  # for files that do not tell theirs
LABELS = ("original", "reconstruction", "difference")


@torch.no_grad()
def reconstruct(
    videos: Sequence[str | Path], checkpoint: str | Path, out: str | Path, position: str = "center"
) -> Iterator[dict[str, Any]]:
    """Send one clip of each video, or an image, through a tokenizer and write what came of it; yields their summaries.

    Into `out`, by the video's name: NAME.mp4 (original | reconstruction | difference), NAME.png (frames of it),
    NAME.safetensors (`ids`, ready for `decode`) and NAME.json (PSNR of every frame, layout of the ids, first words).
    Videos of one name get numbers. Raises FileNotFoundError and ValueError (also ClipError) naming the file.
    """
    device = PartialState().device
    tokenizer = load_tokenizer(checkpoint).to(device)
    config = tokenizer.config
    for path, name in zip(videos, unique_names(videos), strict=True):
        info, size = probe(path), (config.height, config.width)
        if Path(path).suffix.lower() in IMAGE_SUFFIXES:
            clip, black = read_image(path, size), 0
        else:
            clip = read_clip(path, config.num_frames, size, position=position)
            black = max(0, config.num_frames - info.num_frames)
        trip = round_trip(tokenizer, clip[None].to(device))
        shown = to_uint8(trip.video).cpu()
        facts = {
            "video": str(path),
            "source": asdict(info),
            "clip": {"position": position, "frames": clip.shape[1], "height": config.height, "width": config.width},
            "black_frames": black,
            "psnr": psnr(clip[None], shown).item(),
            "psnr_per_frame": frame_psnr(clip[None], shown)[0].tolist(),
            "ids_per_clip": trip.ids[0].numel(),
            "bits_per_clip": trip.bits,
            **_meaning(trip),
        }
        _write(Path(out) / name, clip, shown[0], trip.ids, info.fps or DEFAULT_FPS, facts)
        yield {**facts, "files": f"{Path(out) / name}.{{mp4,png,json,safetensors}}"}


def unique_names(paths: Sequence[str | Path]) -> list[str]:
    """File names without suffix; repeated ones get -1, -2, ... in order."""
    stems = [Path(path).stem for path in paths]
    total, seen, names = Counter(stems), Counter(), []
    for stem in stems:
        seen[stem] += 1
        names.append(f"{stem}-{seen[stem]}" if total[stem] > 1 else stem)
    return names


def _meaning(trip: RoundTrip) -> dict[str, Any]:
    """How to read the ids: segments and first words of a language tokenizer, the grid of a plain one."""
    if isinstance(trip.output, Tensor):
        return {"grid": list(trip.ids.shape[1:]), "codes": trip.sizes["code"], "words": {}}
    segments = [asdict(segment) for segment in trip.output.layout.segments]
    return {"segments": segments, "words": trip.output.words(max_queries=NUM_QUERIES)}


def _write(stem: Path, clip: Tensor, shown: Tensor, ids: Tensor, fps: float, facts: dict[str, Any]) -> None:
    columns = min(STRIP_FRAMES, clip.shape[1])
    rows = compare(clip, shown).chunk(3, dim=3)
    write_video(f"{stem}.mp4", compare(clip, shown, labels=LABELS), fps)
    write_png(f"{stem}.png", torch.cat([film_strip(row, columns) for row in rows], dim=1))
    with write_aside(Path(f"{stem}.safetensors")) as aside:
        aside.write_bytes(save({"ids": ids.cpu().contiguous()}))
    write_json(f"{stem}.json", facts)
