"""Writing videos, images and text files atomically, and joining clips into one picture."""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sweettok.store import COMMENT, write_aside

CRF = "16"
LEAST = 192  # pixels: edges of enlarged clips are at least this long
TITLE = 16  # pixels: height of the bar with a title


def write_video(
    path: str | Path,
    frames: Tensor | Iterable[Tensor],
    fps: float,
    lossless: bool = False,
    full_chroma: bool = False,
    replaceable: bool = True,
) -> None:
    """Write a video file of exactly the size of the frames at `fps`, without sound.

    Args:
        frames: uint8 (3, T, H, W), RGB, or an iterable of consecutive blocks (3, n, H, W).
        lossless: H.264 in RGB, or FFV1 if the suffix is .mkv. Otherwise H.264 with 4:2:0 chroma, which all video
            software can show.
        full_chroma: 4:4:4 chroma; always used for odd sizes.
        replaceable: whether `store.check_output` lets commands replace the file, by a comment in its metadata.
    """
    import av

    rate = Fraction(fps).limit_denominator(1001) if 0 < fps < math.inf else 0
    if rate == 0:
        raise ValueError(f"fps must be above 0, and at least 0.001, got {fps}")
    path, stream, count = Path(path), None, 0
    with write_aside(path) as aside, av.open(str(aside), "w") as container:
        if replaceable:
            container.metadata["comment"] = COMMENT
        for block in (frames,) if isinstance(frames, Tensor) else frames:
            _check(block, 4, "(3, T, H, W)")
            count += block.shape[1]
            if stream is None:
                height, width = block.shape[2:]
                full = full_chroma or height % 2 == 1 or width % 2 == 1
                codec, pixels, options = _encoding(path, lossless, full)
                stream = container.add_stream(codec, rate=rate, options=options)
                stream.width, stream.height, stream.pix_fmt = width, height, pixels
                stream.codec_context.thread_count = 1
            for array in block.permute(1, 2, 3, 0).contiguous().cpu().numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        if count == 0:
            raise ValueError(f"cannot write {path}: the clip has no frames")
        container.mux(stream.encode())


def _encoding(path: Path, lossless: bool, full_chroma: bool) -> tuple[str, str, dict[str, str]]:
    if lossless and path.suffix.lower() == ".mkv":
        return "ffv1", "bgr0", {}
    if lossless:
        return "libx264rgb", "rgb24", {"crf": "0"}
    # With mbtree, x264 encodes small frames differently from run to run.
    return "libx264", "yuv444p" if full_chroma else "yuv420p", {"crf": CRF, "x264-params": "mbtree=0"}


def write_png(path: str | Path, image: Tensor) -> None:
    """uint8 (3, H, W) -> a PNG file, which commands may replace."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Comment", COMMENT)
    _check(image, 3, "(3, H, W)")
    with write_aside(Path(path)) as aside:
        Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).save(aside, format="PNG", pnginfo=info)


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    """Lines of text -> a UTF-8 file."""
    with write_aside(Path(path)) as aside:
        aside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def tile(clips: Sequence[Tensor], columns: int) -> Tensor:
    """uint8 (3, T, H, W) clips of one shape -> (3, T, rows * H, columns * W), row by row, filled up with black."""
    for clip in clips:
        _check(clip, 4, "(3, T, H, W)")
    if not clips or len({clip.shape for clip in clips}) > 1:
        raise ValueError(f"expected clips of one shape, got {[tuple(clip.shape) for clip in clips]}")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    places = [*clips, *[torch.zeros_like(clips[0])] * (-len(clips) % columns)]
    rows = [torch.cat(places[first : first + columns], dim=3) for first in range(0, len(places), columns)]
    return torch.cat(rows, dim=2)


def compare(original: Tensor, reconstruction: Tensor, labels: Sequence[str] = ()) -> Tensor:
    """original | reconstruction | absolute difference: two uint8 (3, T, H, W) clips -> (3, T, H, 3 * W).

    With `labels`, three titles, the clips are enlarged and titled.
    """
    if original.shape != reconstruction.shape:
        shapes = f"{tuple(original.shape)} and {tuple(reconstruction.shape)}"
        raise ValueError(f"compare needs two clips of one shape, got {shapes}")
    difference = (original.int() - reconstruction.int()).abs().to(torch.uint8)
    clips = (original, reconstruction, difference)
    if labels:
        clips = [titled(enlarge(clip), label) for clip, label in zip(clips, labels, strict=True)]
    return tile(clips, columns=3)


def film_strip(clip: Tensor, columns: int) -> Tensor:
    """uint8 (3, T, H, W) -> (3, H, columns * W): evenly spaced frames, including the first and the last."""
    _check(clip, 4, "(3, T, H, W)")
    if not 1 <= columns <= clip.shape[1]:
        raise ValueError(f"columns must be 1..{clip.shape[1]}, the frames of the clip, got {columns}")
    places = np.linspace(0, clip.shape[1] - 1, columns).round().astype(int)
    return torch.cat([clip[:, place] for place in places], dim=2)


def enlarge(clip: Tensor, least: int = LEAST, mode: str = "bicubic") -> Tensor:
    """uint8 (3, T, H, W) -> the same with edges of at least `least` pixels, enlarged by a whole, even factor.

    `mode`: "nearest" keeps every pixel as a square, "bicubic" is smooth.
    """
    factor = -(-least // min(clip.shape[2:]))
    if factor < 2:
        return clip
    size = [edge * (factor + factor % 2) for edge in clip.shape[2:]]
    frames = interpolate(clip.float().transpose(0, 1), size, mode=mode)
    return frames.round().clamp(0, 255).byte().transpose(0, 1)


def titled(clip: Tensor, title: str) -> Tensor:
    """uint8 (3, T, H, W) -> (3, T, H + TITLE, W): the clip below a black bar with the title in white."""
    from PIL import Image, ImageDraw

    _check(clip, 4, "(3, T, H, W)")
    image = Image.new("L", (clip.shape[3], TITLE))
    ImageDraw.Draw(image).text((3, 2), title, fill=255)
    bar = torch.from_numpy(np.array(image)).to(clip.device).expand(3, clip.shape[1], -1, -1)
    return torch.cat((bar, clip), dim=2)


def _check(pixels: Tensor, dims: int, shape: str) -> None:
    if pixels.dtype != torch.uint8 or pixels.ndim != dims or pixels.shape[0] != 3:
        raise ValueError(f"expected uint8 pixels {shape}, got {pixels.dtype} {tuple(pixels.shape)}")
