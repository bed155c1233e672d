"""Write the animated picture of the README from the quickstart's tokenizer: python scripts/readme_picture.py

Held-out synthetic clips, one below the other: original, reconstruction, and the verbs of the temporal queries at their
positions. Every second frame, enlarged.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sweettok import SweetTok
from sweettok.data.writer import titled
from sweettok.pixels import to_uint8
from sweettok.store import COMMENT, check_output, write_aside
from sweettok.words.overlay import FOOTER, overlay

ROOT = Path(__file__).resolve().parent.parent
CLIPS = ("slide-right", "fall")  # classes, of each the first held-out clip
MILLISECONDS = 300  # of a frame


def row(tok: SweetTok, path: Path) -> Tensor:
    """uint8 (3, T, H, 3 * W) of one clip."""
    clip = tok.read(path)
    out = tok.encode(clip)
    words = overlay(clip[0], out, cell=32)
    words = words[..., :-FOOTER, : words.shape[3] // 2]  # the panel of the temporal queries
    size = tuple(words.shape[2:])
    panels = [clip[0], to_uint8(tok.decode(out))[0]]
    enlarged = [torch.nn.functional.interpolate(panel.float(), size, mode="nearest").byte() for panel in panels]
    labels = ("original", "reconstruction", "verbs")
    return torch.cat([titled(panel, label) for panel, label in zip([*enlarged, words], labels, strict=True)], dim=3)


def main() -> None:
    parser = argparse.ArgumentParser(description="The animated picture of the README.")
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs" / "tiny", help="what the quickstart wrote")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "quickstart.gif")
    args = parser.parse_args()
    check_output(args.out, (".gif",))
    tok = SweetTok.from_pretrained(args.outputs / "stage2" / "final")
    paths = [sorted((args.outputs / "clips" / "videos" / name).glob("val_*.mp4"))[0] for name in CLIPS]
    video = torch.cat([row(tok, path) for path in paths], dim=2)
    frames = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in video[:, ::2].unbind(1)]
    frames = [frame.quantize(112, dither=Image.Dither.NONE) for frame in frames]
    with write_aside(args.out) as aside:
        frames[0].save(
            aside,
            save_all=True,
            append_images=frames[1:],
            duration=MILLISECONDS,
            loop=0,
            optimize=True,
            comment=COMMENT,
        )
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
