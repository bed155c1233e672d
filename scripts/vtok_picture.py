"""Draw the manual's picture of VTok's tokens: python scripts/vtok_picture.py [--out docs/images/vtok.png] [--seed 4]

A drawn scene and an image encoder with random weights; the colours of tokens are their first three principal
components, apart for key frame and motion tokens.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor
from torch.nn.functional import interpolate

from sweettok import VTok
from sweettok.data.scenes import sample
from sweettok.store import check_output, write_aside
from sweettok.vtok.config import VTokConfig

ROOT = Path(__file__).resolve().parent.parent
SIZE, FRAMES, FPS = 64, 25, 24
VISION = {"image_size": SIZE, "patch_size": 8, "width": 96, "layers": 3, "head_width": 32}


def colours(values: Tensor) -> Tensor:
    """Tokens (n, C) -> colours (n, 3) in [0, 1]."""
    centred = values - values.mean(0)
    parts = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:3].mT
    low, high = parts.amin(0), parts.amax(0)
    return ((parts - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)


def draw(path: Path, seed: int) -> None:
    torch.manual_seed(0)
    tok = VTok(VTokConfig(pretrained=None, architecture={"embed_dim": 96, "vision_cfg": VISION})).eval()
    video = sample(np.random.default_rng(seed)).draw(FRAMES, SIZE)
    tokens = tok.encode(video[None], FPS)
    places = [round(time * FPS) for time in tokens.times[0, 15:].tolist()]
    maps = tok.encoder(video[:, places].movedim(1, 0).float() / 255 - 0.5)
    size = (maps - maps[:1]).norm(dim=1, keepdim=True)
    size = interpolate(size / size.max(), (SIZE, SIZE), mode="nearest")[:, 0]
    shown = [colours(tokens.values[0, part]) for part in (slice(16), slice(16, None))]
    figure, axes = plt.subplots(3, len(places), figsize=(1.5 * len(places), 4.9), layout="constrained")
    for column, place in enumerate(places):
        frame, difference, token = axes[:, column]
        frame.imshow(video[:, place].permute(1, 2, 0))
        frame.set_title("key frame\n0 s" if column == 0 else f"\n{place / FPS:.2f} s", fontsize=9)
        if column == 0:
            difference.imshow(maps[0].norm(dim=0), cmap="gray")
            difference.set_title("features", fontsize=9)
            token.imshow(shown[0].view(4, 4, 3))
            token.set_title("16 tokens", fontsize=9)
            for line in (0.5, 1.5, 2.5):
                token.axhline(line, color="white", lw=1.5)
                token.axvline(line, color="white", lw=1.5)
        else:
            difference.imshow(size[column], cmap="magma", vmin=0, vmax=1)
            difference.set_title("difference", fontsize=9)
            token.imshow(np.ones((4, 4, 3)))
            token.add_patch(plt.Rectangle((0.75, 0.75), 1.5, 1.5, color=shown[1][column - 1].tolist()))
            token.set_title("1 token", fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    with write_aside(path) as aside:
        figure.savefig(aside, dpi=110, format="png", metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "images" / "vtok.png"
    )
    parser.add_argument("--seed", type=int, default=4, help="of the scene")
    args = parser.parse_args()
    check_output(args.out, (".png",))
    draw(args.out, args.seed)


if __name__ == "__main__":
    main()
