"""The doors of SweetTok: what it does with files and with long videos.

Models know tensors and nothing else. Each method here opens the wing above, `sweettok.video`, when it is called, so
that users find all of it on one object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from torch import Tensor

from sweettok.tokenizer.layout import TokenLayout
from sweettok.tokenizer.output import TokenOutput

if TYPE_CHECKING:
    from sweettok.tokenizer.model import SweetTok
    from sweettok.video.long import LongTokens

Source = Tensor | str | Path | Sequence[str | Path]  # clips, a file, or files as one batch


class Doors:
    """Methods of SweetTok that lead to `sweettok.video`."""

    def read(self: SweetTok, source: Source, **options: str | int | None) -> Tensor:
        """Clips (B, 3, T, H, W) of what `encode` takes: uint8 of files; tensors as they are, without options."""
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        if isinstance(source, str | Path | list | tuple):
            from sweettok.video.sources import read_batch

            return read_batch(self, source, **given)
        if given:
            raise ValueError(f"{', '.join(given)}: for files; a tensor already holds its frames, at their size")
        return cast(Tensor, source)

    def num_tokens(self: SweetTok, T: int | None = None, H: int | None = None, W: int | None = None) -> int:
        """Ids of a clip of T frames of H x W pixels; by default of the configured clip, or image.

        T = 1 is an image. Clips longer than the configured ones are counted as `encode_long` cuts them by default,
        so any length counts there. (`encode` takes longer clips too, for the ids of one, at a length that no training
        has shown it.) Raises ValueError, naming what fits, for a size that `encode` does not take.
        """
        return self._clips(T, H, W) * self._layout(T).length

    def bits(self: SweetTok, T: int | None = None, H: int | None = None, W: int | None = None) -> float:
        """Bits of these ids if every word of a list were equally likely; sizes and errors as of `num_tokens`."""
        return self._clips(T, H, W) * self._layout(T).bits

    def _layout(self: SweetTok, num_frames: int | None) -> TokenLayout:
        return self.layout.spatial if num_frames == 1 else self.layout

    def _clips(self: SweetTok, num_frames: int | None, height: int | None, width: int | None) -> int:
        from sweettok.video.chunks import ChunkMap, default_overlap
        from sweettok.video.long import clip_length

        config, length = self.config, clip_length(self)
        num_frames = length if num_frames is None else num_frames
        height, width = config.height if height is None else height, config.width if width is None else width
        long = num_frames > length > 1
        self.check_clip(length if long else num_frames, height, width)
        return len(ChunkMap(num_frames, length, default_overlap(length))) if long else 1

    def encode_batches(
        self: SweetTok,
        sources: Iterable[str | Path | Tensor],
        batch_size: int = 8,
        workers: int = 2,
        aspect: str = "crop",
        start: int | None = None,
        stride: int = 1,
        position: str = "first",
    ) -> Iterator[TokenOutput]:
        """Many clips -> a TokenOutput for each `batch_size` of them, in order; the last one may be shorter.

        `workers` threads read the next batch while one is encoded; memory does not grow with the number of clips.

        Args:
            sources: paths and tensors (3, T, H, W), uint8 or float in [-0.5, 0.5], in any mixture; a generator is
                read as it is needed. All must have one number of frames.
            aspect, start, stride, position: of files, as in `encode`.

        Raises ValueError for arguments and for no clips, at once; for a clip that cannot be read or does not fit, when
        its batch is asked for: it names the file (ClipError), or the tensor's place, from 0.
        """
        from sweettok.video.sources import encode_batches

        cut: dict[str, Any] = {"start": start, "stride": stride, "position": position}
        return encode_batches(self, sources, batch_size, workers, aspect=aspect, **cut)

    def encode_long(
        self: SweetTok,
        source: str | Path | Tensor,
        overlap: int | None = None,
        aspect: str = "crop",
        batch_size: int = 4,
        **options: Any,
    ) -> LongTokens:
        """A video of any length and size -> LongTokens: the ids (N, L) of N overlapping clips, and how to undo it.

        `source` is a path, read in memory that does not grow, or a tensor (3, T, H, W), uint8 or float in
        [-0.5, 0.5]. Frames are brought to this tokenizer's size as `aspect` says ("crop", "pad" or "stretch").
        Other options and errors: `sweettok.video.long.encode_long`.
        """
        from sweettok.video.long import encode_long

        return encode_long(self, source, overlap, aspect, batch_size, **options)

    @overload
    def decode_long(self: SweetTok, tokens: LongTokens, out: None = None, **options: Any) -> Tensor: ...
    @overload
    def decode_long(self: SweetTok, tokens: LongTokens, out: str | Path, **options: Any) -> Path: ...
    def decode_long(self: SweetTok, tokens: LongTokens, out: str | Path | None = None, **options: Any) -> Tensor | Path:
        """What `encode_long` gave -> the video, float32 (3, T, H, W) in [-0.5, 0.5] on the CPU, at the source's scale.

        With `out`, an MP4 file is written instead, in memory that does not grow, and its path is returned.
        Other options and errors, as for tokens of another tokenizer: `sweettok.video.long.decode_long`.
        """
        from sweettok.video.long import decode_long

        return decode_long(self, tokens, out, **options)

    @overload
    def reconstruct(self: SweetTok, source: str | Path | Tensor, out: None = None, **options: Any) -> Tensor: ...
    @overload
    def reconstruct(self: SweetTok, source: str | Path | Tensor, out: str | Path, **options: Any) -> Path: ...
    def reconstruct(
        self: SweetTok, source: str | Path | Tensor, out: str | Path | None = None, **options: Any
    ) -> Tensor | Path:
        """`encode_long` and `decode_long` in one, with the options of both: a video of any length and size and back.

        Float32 (3, T, H, W) in [-0.5, 0.5] on the CPU, or the path of the MP4 file `out`. One clip of the configured
        shape gives what decode(encode(clip).ids) gives, bit for bit.
        """
        from sweettok.video.long import reconstruct

        return reconstruct(self, source, out, **options)
