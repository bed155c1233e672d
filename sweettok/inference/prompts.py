"""Videos of a language model and its video decoder for a list of prompts.

A folder holds `<name>.mp4` for each prompt; contact_sheet.png, a row of frames of the first ones with their prompts;
and generated.json, the model and all settings. A video depends on the seed, its place in the list, its prompt and these
settings. Existing files are kept, so that an interrupted call can be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sweettok.data.reader import probe, read_clip
from sweettok.data.writer import enlarge, film_strip, titled, write_png, write_video
from sweettok.hub import CONFIG, WEIGHTS, model_folder
from sweettok.inference.sample import refuse_differences
from sweettok.pixels import to_uint8
from sweettok.store import sha256, write_aside
from sweettok.vtok.language import VideoLanguageModel

SHEET, MANIFEST = "contact_sheet.png", "generated.json"
SHEET_ROWS, SHEET_FRAMES, SHEET_HEIGHT = 16, 6, 128


@dataclass(frozen=True)
class PromptSettings:
    """Settings of `generate_prompts`."""

    seed: int = 0
    cfg_scale: float = 1.0  # guidance of the language model
    decoder_scale: float = 1.0  # guidance of the video decoder
    steps: int | None = None  # of the decoder; None: its default
    frames: int | None = None  # of each video; None: as in training


def read_prompts(path: str | Path) -> dict[str, str]:
    """{name: prompt} from JSON Lines with "prompt" and "id", as `sweettok eval tvalign-prompts` writes them."""
    found: dict[str, str] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            name, prompt = str(row["id"]), str(row["prompt"])
            if name in found or "/" in name or not name:
                raise ValueError(f"its id {name!r} is not the name of one video")
        except (ValueError, TypeError, KeyError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}, line {number}, is no object with id and prompt: {reason}") from error
        found[name] = prompt
    if not found:
        raise ValueError(f"{path} holds no prompts")
    return found


def generate_prompts(
    source: str | Path,
    prompts: Mapping[str, str],
    out: str | Path,
    settings: PromptSettings | None = None,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
) -> list[Path]:
    """Write the missing videos of {name: prompt} into the folder `out`; returns the paths of all.

    Raises ValueError if `out` holds videos of other prompts or settings, or of unknown ones, and as
    `VideoLanguageModel.generate_video` does.
    """
    settings, out, folder = settings or PromptSettings(), Path(out), model_folder(source, "VideoLanguageModel")
    about = {"model": sha256(folder / CONFIG, folder / WEIGHTS), **asdict(settings)}
    path, videos = out / MANIFEST, [out / f"{name}.mp4" for name in prompts]
    if path.is_file():
        made, remedy = json.loads(path.read_text(encoding="utf-8")), "use those of the first call, or another folder"
        refuse_differences(made, about, f"{out} holds videos", remedy)
        if list(made["prompts"].items()) != list(prompts.items()):  # a video depends on its place
            raise ValueError(f"{out} holds videos of other prompts: {remedy}")
    elif any(video.exists() for video in videos):
        raise ValueError(f"{out} holds videos of these names, but no {MANIFEST}: choose another folder")
    model = VideoLanguageModel.from_pretrained(folder).to(device)
    model.parts.open_decoder(device)
    with write_aside(path) as aside:
        aside.write_text(
            json.dumps({**about, "prompts": dict(prompts)}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    texts, missing = list(prompts.values()), [i for i, video in enumerate(videos) if not video.exists()]
    options: dict[str, Any] = asdict(settings)
    fps = model.parts.settings.fps
    for start in tqdm(range(0, len(missing), batch_size), desc="generating", disable=None):
        part = missing[start : start + batch_size]
        made = model.generate_video([texts[i] for i in part], indices=part, **options)
        for i, clip in zip(part, to_uint8(made).cpu(), strict=True):
            write_video(videos[i], clip, fps, full_chroma=True)
    write_sheet(out / SHEET, videos[:SHEET_ROWS], texts[:SHEET_ROWS])
    return videos


def write_sheet(path: Path, videos: list[Path], texts: list[str]) -> None:
    """A row of frames of each video below its prompt."""
    rows = []
    for video, text in zip(videos, texts, strict=True):
        clip = enlarge(read_clip(video, probe(video).num_frames, None, "first"), SHEET_HEIGHT)
        strip = film_strip(clip, min(SHEET_FRAMES, clip.shape[1]))
        rows.append(titled(strip[:, None], text)[:, 0])
    width = max(row.shape[2] for row in rows)
    padded = [torch.nn.functional.pad(row, (0, width - row.shape[2])) for row in rows]
    write_png(path, torch.cat(padded, dim=1))
