"""Packet tables that are kept on disk: the same frames without reading the whole file again."""

import os

import pytest
import torch
from test_data_reader import COUNT, FORMATS, encode, places

from sweettok.data import packets
from sweettok.data.backends import PyAVVideo
from sweettok.data.reader import read_clip

STARTS = (0, 13, 26, 50)
UNSAFE = ("mpeg2.mpg", "stream.ts", "open.avi", "refresh.mp4")  # seeking fails, at least before the whole file is read


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """The folder of the tables, which are kept for files of any length and age."""
    monkeypatch.setenv("SWEETTOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packets, "LEAST", 1)
    monkeypatch.setattr(packets, "SETTLED", -1)
    return tmp_path / "cache/packets"


def whole_reads(monkeypatch) -> list[str]:
    """Names of the files that are read as a whole from now on."""
    read, demux = [], PyAVVideo._demux

    def noted(self):
        read.append(self.path.name)
        return demux(self)

    monkeypatch.setattr(PyAVVideo, "_demux", noted)
    return read


@pytest.mark.parametrize("name", FORMATS)
def test_frames_are_those_of_a_file_that_is_read_whole(tmp_path, tables, name, monkeypatch):
    path = encode(tmp_path / name, *FORMATS[name])
    monkeypatch.setenv("SWEETTOK_CACHE", "")
    plain = [read_clip(path, 5, None, start=start) for start in STARTS]
    assert not tables.exists()
    monkeypatch.setenv("SWEETTOK_CACHE", str(tables.parent))
    for _ in range(2):
        for start, clip in zip(STARTS, plain, strict=True):
            assert torch.equal(read_clip(path, 5, None, start=start), clip)
    assert len(list(tables.iterdir())) == 1
    seen = whole_reads(monkeypatch)
    read_clip(path, 5, None, start=50)
    assert bool(seen) == (name in UNSAFE)


def test_a_changed_file_is_read_again(tmp_path, tables, monkeypatch):
    path = encode(tmp_path / "clip.mp4", *FORMATS["closed.mp4"])
    read_clip(path, 5, 16)
    seen = whole_reads(monkeypatch)
    assert places(read_clip(path, 3, None, start=40)) == [40, 41, 42] and not seen
    os.utime(path, (1, 1))
    read_clip(path, 5, 16)
    assert seen == ["clip.mp4"]
    # another video of the same size and time of change: the packets after the seek are not those of the table
    other = encode(tmp_path / "other.mp4", "libx264", {"x264-params": "keyint=10:bframes=0"}, first_pts=3)
    size = max(path.stat().st_size, other.stat().st_size)
    for file in (path, other):
        file.write_bytes(file.read_bytes().ljust(size, b"\0"))
        os.utime(file, (1, 1))
    read_clip(path, 5, 16)
    other.replace(path)
    os.utime(path, (1, 1))
    assert places(read_clip(path, 3, None, start=40)) == [40, 41, 42]


def test_damaged_tables_and_folders_are_no_error(tmp_path, tables, monkeypatch):
    path = encode(tmp_path / "clip.mp4", *FORMATS["closed.mp4"])
    clip = read_clip(path, 5, 16, start=30)
    (table,) = tables.iterdir()
    content = table.read_bytes()
    for damaged in (b"", b"no table", content[:200]):
        table.write_bytes(damaged)
        assert torch.equal(read_clip(path, 5, 16, start=30), clip)
        assert table.read_bytes() == content
    monkeypatch.setenv("SWEETTOK_CACHE", str(path))  # a file, in which nothing can be written
    assert torch.equal(read_clip(path, 5, 16, start=30), clip)
    for name in ("SWEETTOK_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # for a user without a home folder
    assert torch.equal(read_clip(path, 5, 16, start=30), clip)


def test_which_tables_are_kept(tmp_path, tables, monkeypatch):
    paths = [encode(tmp_path / f"{number}.mp4", *FORMATS["xvid_like.mp4"]) for number in range(3)]
    monkeypatch.setattr(packets, "LEAST", COUNT + 1)
    read_clip(paths[0], 5, 16)
    monkeypatch.setattr(packets, "LEAST", COUNT)
    monkeypatch.setattr(packets, "SETTLED", 1000)
    read_clip(paths[0], 5, 16)
    assert not tables.exists()
    monkeypatch.setattr(packets, "SETTLED", -1)
    for number, path in enumerate(paths):
        read_clip(path, 5, 16)
        if number == 0:
            (first,) = tables.iterdir()
            os.utime(first, (1, 1))
            monkeypatch.setattr(packets, "LIMIT", 2 * first.stat().st_size + 50)
    assert len(list(tables.iterdir())) == 2 and not first.exists()
