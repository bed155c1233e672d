"""The two video decoders behind `reader.read_clip`, with one interface.

Frames are counted in display order, which decoders do not offer: a container stores packets in decoding order, some
without timestamps. PyAV seeks, and every seek is checked against the table of packets. decord returns shifted frames
after a seek into files with B-frames, so it decodes from the start, as in the release.
"""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sweettok.data.packets import PacketTable, StoredTable
from sweettok.data.shards import Member

Scale = Callable[[int, int], tuple[int, int]]  # upright native (height, width) -> (height, width) the decoder scales to
MAX_PIXELS = 1 << 27  # of a frame (16K video); with a damaged header, a frame could take all memory


class ClipError(ValueError):
    """A clip or image cannot be read; the message is "file: reason". `permanent`: nor can other frames of the file."""

    def __init__(self, message: str, permanent: bool = False):
        super().__init__(message)
        self.permanent = permanent


class CannotOpen(Exception):
    """This decoder cannot read the container or the codec; the message is the reason."""


class _WrongPacket(Exception):
    """The packets after a seek differ from the packet table."""


class PyAVVideo:
    """The best video stream of a file, decoded by PyAV. `fps` is None if the file has no rate."""

    name = "pyav"

    def __init__(self, path: Path | Member):
        import av

        self.path = path
        self._content = path.read() if isinstance(path, Member) else None
        self._error = (av.FFmpegError, IndexError)  # IndexError: packets of a stream that is not in the header
        self._container = None
        self._stored = StoredTable(path, av.library_versions["libavformat"]) if self._content is None else None
        try:
            self._open()
            self._packets = (self._stored and self._stored.read()) or self._demux()
        except self._error as error:
            self.close()
            raise CannotOpen(f"PyAV cannot open it ({_reason(error)})") from error
        self.num_frames = len(self._packets)
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate else None

    def _demux(self) -> PacketTable:
        """The packet table, by reading the whole file."""
        table = PacketTable.of(filter(self._is_shown, self._container.demux(self._stream)))
        if self._stored:
            self._stored.keep(table)
        return table

    def _open(self) -> None:
        import av

        self.close()
        source = str(self.path) if self._content is None else _named(self._content, self.path.name)
        self._container = av.open(source, metadata_errors="replace")  # titles may have any encoding
        self._stream = self._container.streams.best("video")
        if self._stream is None or self._stream.codec_context is None:
            self.close()
            raise CannotOpen("PyAV finds no video stream it can decode")
        if self._stream.disposition & av.stream.Disposition.attached_pic:
            self.close()
            raise ClipError(f"{self.path}: holds sound and a cover picture, but no video", permanent=True)
        self._stream.codec_context.thread_count = 1  # loader workers are the parallelism
        self._stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}

    @staticmethod
    def _is_shown(packet: Any) -> bool:
        """Whether a packet becomes a frame; the last one is empty, and edit lists hide some."""
        return packet.size > 0 and not packet.is_discard

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def native_size(self) -> tuple[int, int]:
        """(height, width) of the first frame, upright."""
        frames = self.frames(range(1), lambda height, width: (height, width))
        if not frames:
            raise ClipError(f"{self.path}: no frame can be decoded")
        return frames[0].shape[:2]

    def frames(self, wanted: range, scale: Scale) -> list[np.ndarray] | None:
        """uint8 (H, W, 3) arrays of the frames at `wanted`, ascending positions in display order.

        None when the file ends before the last of them; `num_frames` is then corrected.
        """
        convert = _Converter(self.path, scale)
        key = self._keyframe(wanted)
        frames = self._after_seek(wanted, convert, key) if key is not None else None
        if frames is None and key is not None and self._packets.stored:
            # Some formats seek well only after the whole file was read, and the file may have changed unseen.
            self._open()
            count, self._packets = len(self._packets), self._demux()
            if len(self._packets) == count:
                return self.frames(wanted, scale)
            self.num_frames = len(self._packets)
            return None
        return self._from_start(wanted, convert) if frames is None else frames

    def _keyframe(self, wanted: range) -> int | None:
        """Timestamp of the last keyframe before the frames; None where seeking is useless or cannot be checked."""
        stamps = self._packets.stamps()
        if len(np.unique(stamps)) < max(1, self.num_frames):
            return None
        key = self._packets.keyframe_before(stamps[wanted[0]])
        return None if key is None or key in (stamps[0], self._packets.pts[0]) else key

    def _after_seek(self, wanted: range, convert: "_Converter", key: int) -> list[np.ndarray] | None:
        """Frames decoded from the keyframe at timestamp `key`; None where this is unreliable."""
        span = self._packets.stamps()[wanted[0] : wanted[-1] + 1].tolist()
        frames, seen = [], 0
        try:
            for frame in self._decode_from(key):
                if frame.pts is None or (frame.is_corrupt and frame.pts >= key):
                    return None
                if frame.pts < span[0] and not seen:
                    continue
                if frame.pts != span[seen]:
                    return None
                if seen % wanted.step == 0:
                    frames.append(convert(frame))
                seen += 1
                if seen == len(span):
                    return frames
        except (_WrongPacket, *self._error):
            return None
        return None

    def _decode_from(self, key: int) -> Iterator[Any]:
        """Frames from the keyframe at timestamp `key`, or one before it, checked against the packet table.

        Timestamps are not enough: MPEG program streams number frames differently after a seek.
        """
        self._container.seek(key, stream=self._stream, backward=True)
        place: int | None = None
        for packet in self._container.demux(self._stream):
            if self._is_shown(packet):
                place = self._packets.find_keyframe(packet) if place is None else place + 1
                if place is None or not self._packets.holds(place, packet):
                    raise _WrongPacket
            yield from packet.decode()

    def _from_start(self, wanted: range, convert: "_Converter") -> list[np.ndarray] | None:
        """Frames found by counting from the first one."""
        frames = list(self._decoded(wanted, convert))
        return frames if len(frames) == len(wanted) else None

    def stream(self, scale: Scale) -> Iterator[np.ndarray]:
        """uint8 (H, W, 3) arrays of all frames in display order, decoded one at a time."""
        return self._decoded(range(sys.maxsize), _Converter(self.path, scale))

    def _decoded(self, wanted: range, convert: "_Converter") -> Iterator[np.ndarray]:
        """The frames at `wanted` that the file has, decoded from the first one."""
        count, damaged = 0, False
        try:
            self._open()
            for frame in self._container.decode(self._stream):
                damaged = frame.is_corrupt or (damaged and not frame.key_frame)
                if count in wanted:
                    if damaged:
                        raise ClipError(f"{self.path}: frame {count} is damaged")
                    yield convert(frame)
                    if count == wanted[-1]:
                        return
                count += 1
        except self._error as error:
            raise ClipError(f"{self.path}: damaged, decoding fails near frame {count} ({_reason(error)})") from error
        self.num_frames = count


def _named(content: bytes, name: str) -> io.BytesIO:
    """A file in memory with a name, by which PyAV guesses its format."""
    file = io.BytesIO(content)
    file.name = name
    return file


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


class _Converter:
    """Turns frames upright, scales them and converts them to RGB, with the filters of decord in its order."""

    TURNS = {0: [], 90: ["cclock"], -90: ["clock"], 180: ["clock", "clock"], -180: ["clock", "clock"]}

    def __init__(self, path: Path | Member, scale: Scale):
        self.path, self.scale = path, scale
        self.kind: tuple | None = None

    def __call__(self, frame: Any) -> np.ndarray:
        kind = (frame.width, frame.height, frame.format.name, frame.rotation)
        if kind != self.kind:  # the size may change within a stream
            self.graph, self.kind = self._build(frame), kind
        self.graph.push(frame)
        return self.graph.pull().to_ndarray()

    def _build(self, frame: Any):
        import av.filter

        if frame.rotation not in self.TURNS:
            raise ClipError(f"{self.path}: rotated by {frame.rotation} degrees; only multiples of 90 can be read", True)
        upright = (frame.width, frame.height) if abs(frame.rotation) == 90 else (frame.height, frame.width)
        height, width = self.scale(*upright)
        graph = av.filter.Graph()
        graph.link_nodes(
            graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base),
            *(graph.add("transpose", turn) for turn in self.TURNS[frame.rotation]),
            graph.add("scale", f"{width}:{height}:flags=bilinear:threads=1"),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        ).configure()
        return graph


class DecordVideo:
    """One file decoded by decord, the release's decoder, with the interface of `PyAVVideo`.

    Every call opens its own reader: kept readers leak memory and hang in forked workers. Some damaged headers make
    decord end the whole process (std::bad_alloc), so PyAV is tried first.
    """

    name = "decord"
    LOSES_FRAMES = (".ts", ".mts", ".m2ts")  # decord starts transport streams at their second keyframe

    def __init__(self, path: Path | Member):
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        self.path = path
        self._content = path.read() if isinstance(path, Member) else None
        self._errors = (decord.DECORDError, RuntimeError, StopIteration)
        if path.suffix.lower() in self.LOSES_FRAMES:
            raise CannotOpen("decord loses the first frames of transport streams; use backend='pyav'")
        reader = self._reader()
        self.num_frames, self.fps = len(reader), float(reader.get_avg_fps())

    def _reader(self, height: int = -1, width: int = -1) -> Any:
        import decord

        try:
            source = str(self.path) if self._content is None else _named(self._content, self.path.name)
            return decord.VideoReader(source, width=width, height=height, num_threads=1)
        except self._errors as error:
            raise CannotOpen("decord cannot open it") from error

    def close(self) -> None:
        """Nothing stays open between calls."""

    def native_size(self) -> tuple[int, int]:
        return next(self._decode(self._reader(), range(1))).shape[:2]

    def frames(self, wanted: range, scale: Scale) -> list[np.ndarray] | None:
        return list(self._decode(self._reader(*scale(*self.native_size())), wanted))

    def stream(self, scale: Scale) -> Iterator[np.ndarray]:
        return self._decode(self._reader(*scale(*self.native_size())), range(self.num_frames))

    def _decode(self, reader: Any, wanted: range) -> Iterator[np.ndarray]:
        try:
            for place in range(wanted[-1] + 1):
                frame = reader.next()
                if place in wanted:
                    array = frame.asnumpy()
                    height, width = array.shape[:2]  # some widths, such as 16, come with padding
                    yield array.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)
        except self._errors as error:
            raise ClipError(f"{self.path}: damaged, decord fails at frame {place}") from error
