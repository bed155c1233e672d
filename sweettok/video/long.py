"""Videos of any length and size: `encode_long`, `decode_long`, `reconstruct`, and the ids between them as one file.

Memory does not grow with the length of a file, but for its ids and the decoder's table of its packets. Letters: N clips
of a long video, L ids per clip (in shapes of ids), B clips of a batch, T frames of the video, H W pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from sweettok.data.preprocess import open_frames
from sweettok.data.resize import Fit
from sweettok.data.writer import write_video
from sweettok.pixels import to_uint8
from sweettok.store import check_apart, write_aside
from sweettok.tokenizer.layout import TokenLayout
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.output import TokenOutput
from sweettok.video.ahead import one_ahead
from sweettok.video.chunks import ChunkMap, ClipCutter, blend, default_overlap
from sweettok.video.files import DEFAULT_FPS, OUTPUTS, Source, check_least, check_output

FORMAT = 1
ABOUT = "sweettok_long_tokens"  # the entry of the file's metadata


@dataclass(frozen=True, repr=False)
class LongTokens:
    """The ids of a long video, and all that is needed to decode them but the tokenizer.

    output: what the clips say, one after the other, on the CPU. chunks: which frames each clip holds. fit: how the
    source's frames were fitted into the tokenizer's. fps: frames per second of the source, None when untold.
    tokenizer_hash: `SweetTok.ids_hash()`.
    """

    output: TokenOutput
    chunks: ChunkMap
    fit: Fit
    fps: float | None
    tokenizer_hash: str

    def __post_init__(self) -> None:
        self.layout.check(self.ids)
        if len(self.ids) != len(self.chunks):
            raise ValueError(f"the chunk map is of {len(self.chunks)} clips, the ids of {len(self.ids)}")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"fps must be above 0, or None when untold; got {self.fps}")

    def __repr__(self) -> str:
        frames, (height, width) = self.chunks.num_frames, self.fit.source
        told = f"{frames} frames of {height}x{width}, {len(self.ids)} clips x {self.layout.length} ids"
        return f"LongTokens({told}, {self.bits:.0f} bits)"

    @property
    def ids(self) -> Tensor:
        """(N, L) int64."""
        return self.output.ids

    @property
    def layout(self) -> TokenLayout:
        """What the ids of a clip mean."""
        return self.output.layout

    @property
    def bits(self) -> float:
        """Of all clips, their overlaps included, if every word of a list were equally likely."""
        return len(self.ids) * self.layout.bits

    @property
    def seconds(self) -> float | None:
        """Duration of the video; None when its rate is untold."""
        return self.chunks.num_frames / self.fps if self.fps else None

    def words(self, chunk: int = 0, max_queries: int | None = None) -> dict[str, list[str]]:
        """What each query of one clip says, as `TokenOutput.words`."""
        return self.output.words(chunk, max_queries)

    def check_tokenizer(self, ids_hash: str) -> None:
        """Raise ValueError unless the tokenizer with this `SweetTok.ids_hash()` can decode these ids."""
        if ids_hash != self.tokenizer_hash:
            raise ValueError(
                f"these ids are of the tokenizer {self.tokenizer_hash[:12]}, not of {ids_hash[:12]}: "
                "give that tokenizer (stage 1 or stage 2 of one encoder do), or encode the video with this one"
            )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: `ids` int32, and everything else as JSON in its metadata."""
        about = {
            "format": FORMAT,
            "chunks": asdict(self.chunks),
            "fit": asdict(self.fit),
            "fps": self.fps,
            "layout": asdict(self.layout),
            "vocabulary": self.output.vocabulary,
            "grids": self.output.grids,
            "tokenizer_hash": self.tokenizer_hash,
        }
        with write_aside(Path(path)) as aside:
            aside.write_bytes(save({"ids": self.ids.to(torch.int32)}, {ABOUT: json.dumps(about)}))

    @classmethod
    def load(cls, path: str | Path) -> LongTokens:
        """Read what `save` wrote. FileNotFoundError if there is no such file, ValueError if it is another one."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no {path}: expected a file written by LongTokens.save")
        try:
            with safe_open(path, framework="pt") as file:
                if ABOUT not in (metadata := file.metadata() or {}):
                    raise ValueError("LongTokens.save did not write it")
                about = json.loads(metadata[ABOUT])
                version = about.pop("format")
                if version != FORMAT:
                    raise ValueError(f"format {version}, this version reads {FORMAT}")
                chunks, fit, layout = ChunkMap(**about.pop("chunks")), Fit(**about.pop("fit")), about.pop("layout")
                vocabulary = tuple(map(tuple, about.pop("vocabulary")))
                grids = {branch: tuple(grid) for branch, grid in about.pop("grids").items()}
                output = TokenOutput(file.get_tensor("ids").long(), TokenLayout(**layout), vocabulary, grids)
                return cls(output, chunks, fit, **about)
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no ids of a long video: {error}") from error


def clip_length(tokenizer: SweetTok) -> int:
    """Frames of the clips that a long video is cut into: the configured number, 1 for a tokenizer of images."""
    return tokenizer.config.num_frames if tokenizer.layout.num_temporal else 1


@torch.no_grad()
def encode_long(
    tokenizer: SweetTok,
    source: Source,
    overlap: int | None = None,
    aspect: str = "crop",
    batch_size: int = 4,
    max_frames: int | None = None,
    progress: bool = False,
) -> LongTokens:
    """A video of any length and size -> the ids of overlapping clips of it.

    Args:
        source: path of a video or image, which is decoded once from front to back, the next batch while this one is
            encoded; or a tensor (3, T, H, W) or (1, 3, T, H, W), uint8 or float in [-0.5, 0.5].
        overlap: frames that neighbouring clips share; see `default_overlap`. More blends longer and costs more.
        aspect: how frames of another size are fitted, "crop", "pad" or "stretch"; see `Fit`.
        batch_size: clips that are encoded together.
        max_frames: only so many frames of the source.
        progress: show a progress bar.

    A tokenizer of clips repeats the last frame of a source that is shorter than a clip, as an image is, and
    `decode_long` cuts that off again. Raises ClipError naming file and frame for what cannot be read, and ValueError.
    There is no limit on the time that reading takes: `python -m sweettok.data scan` finds files at which it hangs.
    """
    length = clip_length(tokenizer)
    overlap = default_overlap(length) if overlap is None else overlap
    check_least("batch_size", batch_size)
    size = tokenizer.config.height, tokenizer.config.width
    ids: list[Tensor] = []
    with open_frames(source, aspect, size, max_frames) as stream:
        cutter = ClipCutter(stream.frames, length, overlap)
        hidden = None if progress else True  # None: shown on terminals alone
        with closing(one_ahead(batched(cutter, batch_size))) as batches, tqdm(unit="clip", disable=hidden) as bar:
            for clips in batches:
                ids.append(tokenizer.encode(clips).ids.cpu())
                bar.update(len(clips))
    chunks = ChunkMap(cutter.num_frames, length, overlap)
    return LongTokens(tokenizer.describe(torch.cat(ids)), chunks, stream.fit, stream.fps, tokenizer.ids_hash())


def decode_long(
    tokenizer: SweetTok,
    tokens: LongTokens,
    out: str | Path | None = None,
    batch_size: int = 4,
    undo_aspect: bool = True,
) -> Tensor | Path:
    """The ids of a long video -> the video: float32 (3, T, H, W) in [-0.5, 0.5] on the CPU, or a file.

    Args:
        out: an MP4 file to write as it is decoded, in memory that does not grow, at the source's mean rate (25 frames
            per second where it told none) and without sound; its path is what comes back.
        batch_size: clips that are decoded together.
        undo_aspect: give frames at the scale of the source, without bars; of cropped frames the part that was seen
            (`tokens.fit.seen`). Otherwise frames of the tokenizer's size.

    Raises ValueError for the ids of another tokenizer, and for an `out` that is no name of an MP4 (or MKV, MOV) file.
    """
    _check_out(out)
    if not isinstance(tokens, LongTokens):
        raise ValueError(f"tokens must be LongTokens, got {type(tokens).__name__}; of a file, LongTokens.load gives it")
    tokens.check_tokenizer(tokenizer.ids_hash())
    return _finish(_blocks(tokenizer, tokens, batch_size, undo_aspect), tokens, out)


def decode_blocks(
    tokenizer: SweetTok, tokens: LongTokens, batch_size: int = 4, undo_aspect: bool = True
) -> Iterator[Tensor]:
    """As `decode_long`, in float32 blocks (3, n, H, W) that follow one another, for videos that memory cannot hold."""
    tokens.check_tokenizer(tokenizer.ids_hash())
    return _blocks(tokenizer, tokens, batch_size, undo_aspect)


def reconstruct(
    tokenizer: SweetTok,
    source: Source,
    out: str | Path | None = None,
    overlap: int | None = None,
    aspect: str = "crop",
    batch_size: int = 4,
    max_frames: int | None = None,
    undo_aspect: bool = True,
    progress: bool = False,
) -> Tensor | Path:
    """`encode_long`, then `decode_long`: what the tokenizer makes of a video, as float32 (3, T, H, W) or as a file.

    For one clip of the configured shape it is decode(encode(clip)), bit for bit.
    """
    _check_out(out)
    if out is not None and isinstance(source, str | Path):
        check_apart([source], [out])
    tokens = encode_long(tokenizer, source, overlap, aspect, batch_size, max_frames, progress)
    return _finish(_blocks(tokenizer, tokens, batch_size, undo_aspect), tokens, out)


def _blocks(tokenizer: SweetTok, tokens: LongTokens, batch_size: int, undo_aspect: bool) -> Iterator[Tensor]:
    check_least("batch_size", batch_size)
    decoded = (clip for ids in tokens.ids.split(batch_size) for clip in tokenizer.decode(ids).float().cpu())
    for block in blend(decoded, tokens.chunks):
        if undo_aspect:  # a single frame of the source may already be large
            yield from map(tokens.fit.undo, block.split(1, dim=1))
        else:
            yield block


def _finish(blocks: Iterator[Tensor], tokens: LongTokens, out: str | Path | None) -> Tensor | Path:
    if out is None:
        return torch.cat(list(blocks), dim=1)
    write_video(out, map(to_uint8, blocks), tokens.fps or DEFAULT_FPS)
    return Path(out)


def batched(clips: Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Clips -> (B, *clip) of each `batch_size` of them; the last batch may be smaller."""
    clips = iter(clips)
    while batch := list(islice(clips, batch_size)):
        yield torch.stack(batch)


def _check_out(out: str | Path | None) -> None:
    if out is not None:
        check_output(out, OUTPUTS)
