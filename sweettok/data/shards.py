"""Videos in tar shards (WebDataset), read one by one by their bytes: of local files, over HTTP, or from a command.

A list names a video as SHARD#OFFSET+SIZE/NAME, with its place in the shard; `index_shards` makes such lists.
"""

import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from sweettok.store import sha256

PATTERN = re.compile(r"(?P<shard>.+)#(?P<offset>\d+)\+(?P<size>\d+)/(?P<name>.+)", re.DOTALL)
PIPE = "pipe:"  # before a command
REMOTE = ("http://", "https://", PIPE)
ALLOWED = "SWEETTOK_PIPE"  # environment variable: commands are run only if it is "1"
TRIES, WAIT, TIMEOUT = 3, 1.0, 60  # of a request; seconds before the second one, twice as long before the next; seconds
BLOCK = 1 << 16  # bytes of a request while a shard is indexed
LABEL = "label"  # entry of a .json file


class Member(str):
    """A file in a shard: "SHARD#OFFSET+SIZE/NAME"; it is read with one request."""

    def _part(self, name: str) -> str:
        return PATTERN.fullmatch(self)[name]

    @property
    def shard(self) -> str:
        return self._part("shard")

    @property
    def name(self) -> str:
        return self._part("name")

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def key(self) -> str:
        """Name of the clip: that of the shard, and its own."""
        found = re.search(r"([^/\s=]+)\.tar\b", self.shard)
        return f"{found[1] if found else self.shard}/{Path(self.name).with_suffix('').as_posix()}"

    def moved(self, shard: str | Path) -> "Member":
        """The same place in another shard."""
        return Member(f"{shard}{self[len(self.shard) :]}")

    def read(self) -> bytes:
        """Raises OSError."""
        offset, size = int(self._part("offset")), int(self._part("size"))
        content = fetch(self.shard, offset, size)
        if len(content) != size:
            raise OSError(f"the shard ends after {len(content)} of its {size} bytes: index the shards again")
        return content


def is_local(shard: str) -> bool:
    """Whether a shard is a file of this machine."""
    return not shard.startswith(REMOTE)


def check_allowed(shard: str) -> None:
    """Raise ValueError for a command, unless the environment allows commands."""
    if shard.startswith(PIPE) and os.environ.get(ALLOWED) != "1":
        raise ValueError(f"{shard}: reading it would run this command; set {ALLOWED}=1 if you trust it")


def as_source(path: str | Path) -> Path | Member:
    """A path, or a file in a shard by its text."""
    return Member(path) if isinstance(path, str) and PATTERN.fullmatch(path) else Path(path)


def digest(path: Path | Member) -> str:
    """SHA-256 of the bytes of a file. Raises OSError."""
    return hashlib.sha256(path.read()).hexdigest() if isinstance(path, Member) else sha256(path)


def fetch(shard: str, start: int, size: int) -> bytes:
    """Up to `size` bytes of a shard, fewer at its end. Raises OSError, and ValueError for one that cannot be used."""
    if shard.startswith(PIPE):
        check_allowed(shard)
        return _run(shard.removeprefix(PIPE), start, start + size - 1)[:size]
    if is_local(shard):
        with open(shard, "rb") as file:
            file.seek(start)
            return file.read(size)
    for attempt in range(TRIES):
        try:
            return _request(shard, start, start + size - 1)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # behind the end
                return b""
            if (error.code < 500 and error.code != 429) or attempt == TRIES - 1:
                raise OSError(f"HTTP status {error.code} {error.reason}") from error
        except (OSError, HTTPException) as error:
            if attempt == TRIES - 1:
                raise OSError(f"cannot be read ({getattr(error, 'reason', error)})") from error
        time.sleep(WAIT * 2**attempt)
    raise AssertionError


def _request(url: str, first: int, last: int) -> bytes:
    request = urllib.request.Request(url, headers={"Range": f"bytes={first}-{last}"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status != 206:
            raise ValueError(f"{url}: the server does not send parts of files (HTTP ranges), which reading clips needs")
        return response.read()


def _run(command: str, first: int, last: int) -> bytes:
    if "{start}" not in command or "{end}" not in command:
        example = "pipe:curl -fsS -r {start}-{end} URL"
        raise ValueError(f"pipe:{command}: must print the bytes {{start}} to {{end}} of the shard, such as {example}")
    line = command.replace("{start}", str(first)).replace("{end}", str(last))
    try:
        done = subprocess.run(shlex.split(line), capture_output=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{line} did not end in {TIMEOUT} seconds") from error
    if done.returncode:
        raise OSError(f"exit status {done.returncode} of {line}: {done.stderr.decode(errors='replace').strip()[-200:]}")
    return done.stdout


class _Shard(io.RawIOBase):
    """A shard as a file, read in parts."""

    def __init__(self, shard: str):
        self.shard, self.place = shard, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + (self.place if whence == io.SEEK_CUR else 0)
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: memoryview) -> int:
        content = fetch(self.shard, self.place, len(buffer))
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)


class Indexed(NamedTuple):
    """A clip of a shard, and its class from 0."""

    member: Member
    label: int | None


def expand_shards(shards: Sequence[str]) -> list[str]:
    """Paths and URLs with braces, "train-{000..099}.tar" -> those of all shards. Raises ImportError."""
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise ImportError("tar shards need webdataset: pip install 'sweettok[webdataset]'") from error
    return [shard for pattern in shards for shard in expand_urls(pattern)]


def index_shards(shards: Sequence[str], suffixes: Sequence[str], workers: int = 8) -> Iterator[Indexed]:
    """The clips of shards, in order; only headers and labels are read, by `workers` threads.

    A clip is the first file of its key with one of `suffixes`. Its class is the number in its .cls file, or "label" in
    its .json file. Raises OSError for a shard that cannot be read, ValueError for one that is no uncompressed tar file.
    """
    with ThreadPoolExecutor(workers) as pool:
        for found in pool.map(partial(_index, suffixes=suffixes), shards):
            yield from found


def _index(shard: str, suffixes: Sequence[str]) -> list[Indexed]:
    from webdataset.tariterators import base_plus_ext

    clips: dict[str, Member] = {}
    labels: dict[str, int] = {}
    if is_local(shard) and not Path(shard).is_file():
        raise FileNotFoundError(f"no shard at {shard}")
    try:
        with tarfile.open(fileobj=io.BufferedReader(_Shard(shard), BLOCK), mode="r:") as tar:
            for info in tar:
                key, extension = base_plus_ext(info.name) if info.isreg() else (None, None)
                if key is None:
                    continue
                if Path(info.name).suffix.lower() in suffixes:
                    clips.setdefault(key, Member(f"{shard}#{info.offset_data}+{info.size}/{info.name}"))
                elif extension in ("cls", "json"):
                    label = _label(tar.extractfile(info).read(), extension, f"{info.name} in {shard}")
                    labels |= {} if label is None else {key: label}
    except tarfile.ReadError as error:
        raise ValueError(f"{shard}: not an uncompressed tar file ({error})") from error
    except OSError as error:
        raise OSError(f"{shard}: {error.strerror or error}") from error
    return [Indexed(member, labels.get(key)) for key, member in clips.items()]


def _label(content: bytes, extension: str, where: str) -> int | None:
    try:
        value = json.loads(content)
    except ValueError:
        value = content
    if extension == "json":
        value = value.get(LABEL) if isinstance(value, dict) else None
        if value is None:
            return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{where}: the class must be a whole number from 0, got {str(value)[:40]}")
    return value
