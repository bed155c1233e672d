"""Videos of any length and size through a tokenizer of clips, and the file format of their ids.

Memory does not grow with the length of a file, except for its ids and the decoder's table of its packets.
Letters: N clips of a long video, L ids per clip, B clips of a batch, T frames of the video, H W pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice, repeat, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from sweettok.data.preprocess import FrameStream, open_frames
from sweettok.data.resize import Fit
from sweettok.data.writer import write_video
from sweettok.pixels import to_uint8
from sweettok.segments import SegmentLayout
from sweettok.store import check_output, write_aside
from sweettok.video.chunks import ChunkMap, ClipCutter, blend, check_least, default_overlap
from sweettok.video.clips import ClipTokenizer, Item, Output, in_order

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT = 1
METADATA_KEY = "sweettok_long_tokens"
VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov")  # of files that can hold H.264
DEFAULT_FPS = 25.0  # for videos whose rate is unknown
Long = TypeVar("Long", bound="LongVideo[Any]")


@dataclass(frozen=True, repr=False)
class LongVideo(Generic[Output]):
    """The ids of a long video, and all that decoding needs besides the tokenizer.

    A subclass for each tokenizer sets `output_class`, which has `to_dict` and `from_dict`.
    """

    output_class: ClassVar[Any]

    output: Output  # the ids (N, L) of its clips, in order, on the CPU
    chunks: ChunkMap  # the frames of each clip
    fit: Fit  # how the source's frames were resized
    fps: float | None  # frames per second of the encoded frames, None if unknown
    tokenizer_hash: str  # `ids_hash()` of the tokenizer
    stride: int = 1  # every stride-th frame of the source was encoded

    def __post_init__(self) -> None:
        self.layout.check(self.ids)
        if len(self.ids) != len(self.chunks):
            raise ValueError(f"the chunk map has {len(self.chunks)} clips, but there are ids of {len(self.ids)}")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"fps must be above 0, or None if unknown; got {self.fps}")

    def __repr__(self) -> str:
        frames, (height, width) = self.chunks.num_frames, self.fit.source
        facts = f"{frames} frames of {height}x{width}, {len(self.ids)} clips x {self.layout.length} ids"
        return f"{type(self).__name__}({facts}, {self.bits:.0f} bits)"

    @property
    def ids(self) -> Tensor:
        """(N, L) int64."""
        return self.output.ids

    @property
    def layout(self) -> SegmentLayout:
        """Layout of the ids of a clip."""
        return self.output.layout

    @property
    def bits(self) -> float:
        """Bits of all clips if the ids of a segment were uniform; frames in two clips count twice."""
        return len(self.ids) * self.layout.bits

    @property
    def seconds(self) -> float | None:
        """Duration of the video; None if its rate is unknown."""
        return self.chunks.num_frames / self.fps if self.fps else None

    def check_tokenizer(self, ids_hash: str) -> None:
        """Raise ValueError unless the tokenizer with this `ids_hash()` can decode these ids."""
        if ids_hash != self.tokenizer_hash:
            raise ValueError(
                f"these ids are of the tokenizer {self.tokenizer_hash[:12]}, not of {ids_hash[:12]}: use that "
                "tokenizer (stages 1 and 2 of one encoder are equivalent), or encode the video with this one"
            )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: `ids` int32, and everything else as JSON in its metadata."""
        data = {
            "format": FORMAT,
            "chunks": asdict(self.chunks),
            "fit": asdict(self.fit),
            "fps": self.fps,
            "stride": self.stride,
            "tokenizer_hash": self.tokenizer_hash,
            **self.output.to_dict(),
        }
        with write_aside(path) as aside:
            aside.write_bytes(save({"ids": self.ids.to(torch.int32)}, {METADATA_KEY: json.dumps(data)}))

    @staticmethod
    def is_file(path: str | Path) -> bool:
        """Whether `save` wrote this file, for any tokenizer."""
        try:
            with safe_open(path, framework="pt") as file:
                return METADATA_KEY in (file.metadata() or {})
        except (SafetensorError, OSError):
            return False

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote. Raises FileNotFoundError, or ValueError for other files."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no {path}: expected a file written by {cls.__name__}.save")
        try:
            with safe_open(path, framework="pt") as file:
                if METADATA_KEY not in (metadata := file.metadata() or {}):
                    raise ValueError(f"it was not written by {cls.__name__}.save")
                data = json.loads(metadata[METADATA_KEY])
                if data["format"] != FORMAT:
                    raise ValueError(f"format {data['format']}, this version reads {FORMAT}")
                ids = file.get_tensor("ids")
                if ids.is_floating_point():
                    raise ValueError(f"ids must be whole numbers, got {ids.dtype}")
                output = cls.output_class.from_dict(ids.long(), data)
            chunks, fit = ChunkMap(**data["chunks"]), Fit(**data["fit"])
            return cls(output, chunks, fit, data["fps"], data["tokenizer_hash"], data["stride"])
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no ids of a long video: {error}") from error


class LongMethods(ClipTokenizer, Generic[Long]):
    """Mixin of tokenizers: videos of any length and size."""

    def num_tokens(self, T: int | None = None, H: int | None = None, W: int | None = None) -> int:
        """Number of ids of T frames of H x W pixels; by default of the configured clip.

        T = 1 is an image. More frames than in a clip are counted as `encode_long` encodes them by default. Raises
        ValueError for a size that `encode` does not take; the message names one that fits.
        """
        return self._num_clips(T, H, W) * self.clip_layout(self.clip_frames if T is None else T).length

    def bits(self, T: int | None = None, H: int | None = None, W: int | None = None) -> float:
        """Bits of these ids if the ids of a segment were uniform; arguments and errors are those of `num_tokens`."""
        return self._num_clips(T, H, W) * self.clip_layout(self.clip_frames if T is None else T).bits

    def _num_clips(self, num_frames: int | None, height: int | None, width: int | None) -> int:
        config, length = self.config, self.clip_frames
        num_frames = length if num_frames is None else num_frames
        height, width = config.height if height is None else height, config.width if width is None else width
        several = num_frames > length > 1
        self.check_clip(length if several else num_frames, height, width)
        return len(ChunkMap(num_frames, length, default_overlap(length))) if several else 1

    @torch.no_grad()
    def encode_long(
        self,
        source: str | Path | Tensor,
        overlap: int | None = None,
        batch_size: int = 4,
        *,
        resize: str | None = None,
        stride: int | None = None,
        max_frames: int | None = None,
        progress: bool = False,
    ) -> Long:
        """A video of any length and size -> the ids (N, L) of its N overlapping clips, with all that decoding needs.

        A source shorter than a clip, such as an image, is padded with its last frame; `decode_long` removes it.

        Args:
            source: path of a video or image, which is decoded once from front to back, one batch ahead of the encoder;
                or a tensor (3, T, H, W) or (1, 3, T, H, W), uint8 or float in [-0.5, 0.5].
            overlap: frames that neighbouring clips share, by default `default_overlap`. A larger overlap gives
                smoother transitions and more clips.
            batch_size: clips encoded together.
            resize: how frames get the tokenizer's size, "stretch", "crop" or "pad"; default `config.preprocessing`.
            stride: of a file, every stride-th frame is taken; default `config.preprocessing`.
            max_frames: take only so many frames.
            progress: show a progress bar on terminals.

        Raises:
            ClipError: a file or frame cannot be read; the message names both. Reading has no time limit:
                `sweettok data scan` finds files that hang.
            ValueError: wrong arguments.
        """
        length = self.clip_frames
        overlap = default_overlap(length) if overlap is None else overlap
        check_least("batch_size", batch_size)
        ids: list[Tensor] = []
        with self.open_long(source, resize, stride, max_frames) as (stream, stride):
            cutter = ClipCutter(stream.frames, length, overlap)
            hidden = None if progress else True  # None: shown on terminals only
            with closing(one_ahead(batched(cutter, batch_size))) as batches, tqdm(unit="clip", disable=hidden) as bar:
                for clips in batches:
                    ids.append(self.encode(clips).ids.cpu())
                    bar.update(len(clips))
        chunks, fps = ChunkMap(cutter.num_frames, length, overlap), stream.fps and stream.fps / stride
        output = self.describe(torch.cat(ids))
        return cast(Long, self.long_class(output, chunks, stream.fit, fps, self.ids_hash(), stride))

    @contextmanager
    def open_long(
        self, source: str | Path | Tensor, resize: str | None, stride: int | None, max_frames: int | None = None
    ) -> Iterator[tuple[FrameStream, int]]:
        """Frames that `encode_long` encodes with these options, at this tokenizer's size, and their stride."""
        if isinstance(source, Tensor):
            if stride not in (None, 1):
                raise ValueError("stride: only for files; the frames of a tensor are taken as they are")
            stride = 1
        check_least("stride", 1 if stride is None else stride)
        check_least("max_frames", 1 if max_frames is None else max_frames)
        how = self.config.preprocessing.override(resize=resize, stride=stride)
        last = None if max_frames is None else (max_frames - 1) * how.stride + 1
        with open_frames(source, how.resize, (self.config.height, self.config.width), last) as stream:
            yield stream._replace(frames=islice(stream.frames, 0, None, how.stride)), how.stride

    @overload
    def decode_long(
        self, tokens: Long, out: None = None, batch_size: int = 4, *, undo_resize: bool = True
    ) -> Tensor: ...
    @overload
    def decode_long(self, tokens: Long, out: str | Path, batch_size: int = 4, *, undo_resize: bool = True) -> Path: ...
    def decode_long(
        self, tokens: Long, out: str | Path | None = None, batch_size: int = 4, *, undo_resize: bool = True
    ) -> Tensor | Path:
        """Output of `encode_long` -> the video: float32 (3, T, H, W) in [-0.5, 0.5] on the CPU, or a file.

        Args:
            out: a video file (.mp4, .mkv, .mov) to write in constant memory, without sound, at the mean rate of the
                source, or 25 frames per second if that is unknown. Its path is returned.
            batch_size: clips decoded together.
            undo_resize: return frames at the scale of the source, without black bars; of cropped frames the part that
                was kept (`tokens.fit.seen`). Otherwise frames have the tokenizer's size.

        Raises ValueError for the ids of another tokenizer, and for an `out` that `store.check_output` refuses.
        """
        if out is not None:
            check_output(out, VIDEO_SUFFIXES)
        blocks = self.decode_blocks(tokens, batch_size, undo_resize=undo_resize)
        if out is None:
            return torch.cat(list(blocks), dim=1)
        write_video(out, map(to_uint8, blocks), tokens.fps or DEFAULT_FPS)
        return Path(out)

    def decode_blocks(self, tokens: Long, batch_size: int = 4, *, undo_resize: bool = True) -> Iterator[Tensor]:
        """As `decode_long`, in consecutive float32 blocks (3, n, H, W), for videos that do not fit into memory."""
        if not isinstance(tokens, LongVideo):
            raise ValueError(f"tokens must be the result of encode_long or load, got {type(tokens).__name__}")
        tokens.check_tokenizer(self.ids_hash())
        check_least("batch_size", batch_size)

        def blocks() -> Iterator[Tensor]:
            decoded = (clip for ids in tokens.ids.split(batch_size) for clip in self.decode(ids).float().cpu())
            for block in blend(decoded, tokens.chunks):
                if undo_resize:  # frame by frame: one frame of the source may already be large
                    yield from map(tokens.fit.undo, block.split(1, dim=1))
                else:
                    yield block

        return blocks()

    @overload
    def reconstruct(self, source: str | Path | Tensor, out: None = None, **options: Any) -> Tensor: ...
    @overload
    def reconstruct(self, source: str | Path | Tensor, out: str | Path, **options: Any) -> Path: ...
    def reconstruct(
        self, source: str | Path | Tensor, out: str | Path | None = None, *, undo_resize: bool = True, **options: Any
    ) -> Tensor | Path:
        """`encode_long`, then `decode_long`: a video of any length and size and back.

        Args:
            out: a video file to write; its path is returned, otherwise float32 (3, T, H, W) on the CPU.
            undo_resize: as in `decode_long`.
            options: of `encode_long`.

        For one clip of the configured shape the result equals decode(encode(clip).ids), bit for bit.
        """
        if out is not None:
            check_output(out, VIDEO_SUFFIXES, inputs=() if isinstance(source, Tensor) else (source,))
        tokens, batch_size = self.encode_long(source, **options), options.get("batch_size", 4)
        return self.decode_long(tokens, cast(Any, out), batch_size, undo_resize=undo_resize)


def batched(clips: Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Clips -> batches (B, *clip) of `batch_size` clips; the last one may be smaller."""
    clips = iter(clips)
    while batch := list(islice(clips, batch_size)):
        yield torch.stack(batch)


def one_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """Yield the items of an iterator; a thread makes the next one while one is in use. Close it after use."""
    with closing(in_order(repeat(partial(next, items, None)), ahead=1)) as made:
        yield from takewhile(lambda item: item is not None, made)
