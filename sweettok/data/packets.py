"""The packets of a video stream, by which frames are found; those of long files are kept on disk."""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sweettok.store import cache_folder, write_aside

FORMAT = 1  # increase when the content of a file or the choice of packets changes
LEAST = 5_000  # packets of a file whose table is kept: about 3 minutes; reading others takes milliseconds
LIMIT = 1 << 30  # bytes of all tables, some 5,000 hours of video; the ones written first are removed
SETTLED = 10  # seconds after which a changed file counts as complete
NO_PTS = np.iinfo(np.int64).min
_DAMAGED = (OSError, ValueError, KeyError, SafetensorError, zlib.error)


@dataclass(frozen=True)
class PacketTable:
    """Facts that identify the N packets of a stream that become frames, in the order of the file.

    Args:
        pts: int64 (N,), NO_PTS for a packet without timestamp.
        size: int32 (N,), bytes.
        key: bool (N,), whether it is a keyframe.
        stored: whether the table was read from the disk.
    """

    pts: np.ndarray
    size: np.ndarray
    key: np.ndarray
    stored: bool = False

    @classmethod
    def of(cls, packets: Iterable[Any]) -> "PacketTable":
        rows = [(NO_PTS if p.pts is None else p.pts, p.size, p.is_keyframe) for p in packets]
        pts, size, key = zip(*rows, strict=True) if rows else ((), (), ())
        return cls(np.array(pts, np.int64), np.array(size, np.int32), np.array(key, bool))

    def __len__(self) -> int:
        return len(self.pts)

    def stamps(self) -> np.ndarray:
        """Timestamps in display order, of the packets that have one."""
        return np.sort(self.pts[self.pts != NO_PTS])

    def keyframe_before(self, stamp: int) -> int | None:
        """Timestamp of the last keyframe that is not later; None if there is none."""
        found = self.pts[self.key & (self.pts != NO_PTS) & (self.pts <= stamp)]
        return int(found.max()) if len(found) else None

    def holds(self, place: int, packet: Any) -> bool:
        """Whether a packet is the one at `place`."""
        if place >= len(self):
            return False
        pts = NO_PTS if packet.pts is None else packet.pts
        return (self.pts[place], self.size[place], self.key[place]) == (pts, packet.size, packet.is_keyframe)

    def find_keyframe(self, packet: Any) -> int | None:
        """Place of the first packet like this one, which must be a keyframe; None if there is none."""
        pts = NO_PTS if packet.pts is None else packet.pts
        places = np.flatnonzero(self.key & (self.pts == pts) & (self.size == packet.size))
        return int(places[0]) if packet.is_keyframe and len(places) else None


class StoredTable:
    """The file with the packet table of a video; its name is a hash of path, size and time of change.

    Create it before the video is read, so that a table is not kept for a video that changes in between.
    """

    def __init__(self, video: Path, demuxer: Any):
        self.video, self.demuxer = video, demuxer
        self.key, self.changed = self._key()
        folder = cache_folder()
        self.path = folder / "packets" / f"{self.key}.safetensors.z" if folder else None

    def _key(self) -> tuple[str, float]:
        found = self.video.stat()
        facts = [FORMAT, os.path.abspath(self.video), found.st_size, found.st_mtime_ns, self.demuxer]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest(), found.st_mtime

    def read(self) -> PacketTable | None:
        """The table; None if there is none, or a damaged one."""
        if self.path is None:
            return None
        try:
            arrays = load(zlib.decompress(self.path.read_bytes()))
            return PacketTable(np.cumsum(arrays["steps"]), arrays["size"], arrays["key"].astype(bool), stored=True)
        except _DAMAGED:
            return None

    def keep(self, table: PacketTable) -> None:
        """Write the table of a long video that has not changed for some seconds. Without room nothing is written."""
        if self.path is None or len(table) < LEAST or time.time() - self.changed <= SETTLED:
            return
        try:
            if self._key()[0] != self.key:
                return
            with write_aside(self.path) as aside:
                steps = np.diff(table.pts, prepend=0)  # compress better than timestamps
                arrays = {"steps": steps, "size": table.size, "key": table.key.astype(np.uint8)}
                aside.write_bytes(zlib.compress(save(arrays)))
            _make_room(self.path.parent)
        except OSError:
            return


def _make_room(folder: Path) -> None:
    """Remove the files that were written first until all are within LIMIT."""
    files = sorted(((entry.stat(), entry.path) for entry in os.scandir(folder)), key=lambda pair: pair[0].st_mtime)
    excess = sum(found.st_size for found, _ in files) - LIMIT
    for found, path in files:
        if excess <= 0:
            return
        Path(path).unlink(missing_ok=True)
        excess -= found.st_size
