"""Videos of held-out captions for the quickstart of VTok, and its table; exit with 1 if a result is too low.

python scripts/quickstart_vtok.py videos outputs/vtok     TV-Align triplets, and their videos in true, oracle, predicted
python scripts/quickstart_vtok.py table outputs/vtok      results of all stages

`true` are the drawn clips; `oracle` are made by the video decoder from the tokens of the drawn clips, `predicted` by the
language model and the decoder from captions alone.
"""

import json
import sys
from pathlib import Path

import torch

from sweettok import PixelFlow, VideoLanguageModel, VTok
from sweettok.data.writer import enlarge, film_strip, write_png, write_video
from sweettok.eval import tvalign
from sweettok.pixels import to_uint8

NUM, BATCH, SEED, FRAMES, SIZE, FPS = 70, 35, 1, 25, 32, 24
KINDS = ("true", "oracle", "predicted")
SHOWN, STRIP = 14, 7  # triplets on the contact sheet, and frames of each


def sheet(rows: list[dict], clips: dict[str, list[torch.Tensor]]) -> torch.Tensor:
    """For each triplet a row of frames of each kind of video, and its prompt below: uint8 (3, H, W)."""
    import numpy as np
    from PIL import Image, ImageDraw

    parts = []
    for number, row in enumerate(rows):
        strips = [film_strip(enlarge(clips[kind][number], 64), STRIP) for kind in KINDS]
        strips = [torch.nn.functional.pad(strip, (4, 4, 2, 2)) for strip in strips]
        picture = torch.cat(strips, dim=2)
        bar = Image.new("L", (picture.shape[2], 16))
        ImageDraw.Draw(bar).text((4, 1), row["prompt"], fill=255)
        parts += [picture, torch.from_numpy(np.array(bar)).expand(3, -1, -1)]
    return torch.cat(parts, dim=1)


def videos(folder: str) -> int:
    out = Path(folder)
    found = tvalign.triplets(NUM, SEED)
    rows, scenes = [row for row, _ in found], [scene for _, scene in found]
    tvalign.write_triplets(out / "triplets.jsonl", NUM, SEED)
    tokenizer = VTok.from_pretrained(out / "encoder/final")
    decoder = PixelFlow.from_pretrained(out / "decoder/final").eval()
    model = VideoLanguageModel.from_pretrained(out / "joint/final").eval()
    clips: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS}
    for start in range(0, NUM, BATCH):
        part = slice(start, start + BATCH)
        drawn = torch.stack([scene.draw(FRAMES, SIZE) for scene in scenes[part]])
        indices = range(start, start + len(drawn))
        states = decoder.from_tokens(tokenizer.encode(drawn, FPS))
        prompts = [row["prompt"] for row in rows[part]]
        clips["true"] += drawn
        clips["oracle"] += to_uint8(decoder.sample(states, FRAMES, SIZE, seed=SEED, indices=indices))
        clips["predicted"] += to_uint8(model.generate_video(prompts, seed=SEED, indices=indices))
    for kind, made in clips.items():
        for row, clip in zip(rows, made, strict=True):
            write_video(out / kind / f"{row['id']}.mp4", clip, FPS, full_chroma=True)
    write_png(out / "videos.png", sheet(rows[:SHOWN], clips))
    return 0


if __name__ == "__main__":
    sys.exit({"videos": videos}[sys.argv[1]](sys.argv[2]))
