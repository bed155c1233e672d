"""Checking lists before a run: files that do not decode, clips too short, listed twice, or shared by two lists."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from sweettok.data.backends import ClipError
from sweettok.data.lists import IMAGE_SUFFIXES, Entry
from sweettok.data.reader import count_frames, read_image

KINDS = {
    "missing": "there is no such file",
    "unreadable": "does not decode to its end",
    "short": "has fewer frames than a clip",
    "repeated": "is in the list already",
    "shared": "is in the other list too",
    "group": "was cut from the same recording as a clip of the other list",
}
UCF_GROUP = re.compile(r"v_(\w+_g\d+)_c\d+")  # clips of one UCF-101 group show the same people in the same place


@dataclass(frozen=True)
class Problem:
    """Something wrong with one clip of a list: a kind of KINDS, where the list names it, and details."""

    kind: str
    entry: Entry
    detail: str

    def __str__(self) -> str:
        return f"{self.entry.where}: {self.entry.path} {KINDS[self.kind]} ({self.detail})"


@dataclass(frozen=True)
class Facts:
    """What reading one file told: SHA-256 of its bytes, and its frames or why they cannot be had."""

    digest: str | None
    num_frames: int = 0
    error: str | None = None


def scan(
    entries: Sequence[Entry],
    against: Sequence[Entry] = (),
    frames: int = 17,
    stride: int = 1,
    workers: int = 0,
    progress: bool = False,
) -> list[Problem]:
    """Problems of the clips in a list, in its order; every file is decoded to its end.

    Args:
        entries, against: from `lists.read_entries`. `against` is another list, as of validation clips, that should
            share nothing with the first: no file content, no key, no group of UCF-101. Its files are not decoded.
        frames, stride: the clips to be cut; a video shorter than their span is reported.
        workers: processes that read files; 0 reads in this one.
    """
    facts = dict(_map(inspect, {e.path for e in entries}, workers, progress, "decoding"))
    digests = dict(_map(digest, {e.path for e in against}, workers, progress, "comparing"))
    others = {digests[e.path]: e for e in against if digests[e.path]}
    other_keys = {e.key: e for e in against}
    groups = {_group(e): e for e in against if _group(e)}
    span = (frames - 1) * stride + 1
    seen: dict[str, Entry] = {}
    problems = []
    for entry in entries:
        fact = facts[entry.path]
        if fact.digest is None:
            problems.append(Problem("missing", entry, "check the list and its root"))
        elif fact.error is not None:
            problems.append(Problem("unreadable", entry, fact.error))
        elif fact.num_frames < span:
            problems.append(Problem("short", entry, f"{fact.num_frames} of {span}"))
        names = [name for name in (fact.digest, f"key {entry.key}") if name is not None]
        twin = next((seen[name] for name in names if name in seen), None)
        if twin is not None:
            problems.append(Problem("repeated", entry, f"{twin.where}: {twin.path}"))
        seen.update((name, entry) for name in names if name not in seen)
        twin = others.get(fact.digest) or other_keys.get(entry.key)
        if twin is not None:
            problems.append(Problem("shared", entry, f"{twin.where}: {twin.path}"))
        elif _group(entry) in groups:
            problems.append(Problem("group", entry, f"{groups[_group(entry)].path}"))
    return problems


def inspect(path: Path) -> Facts:
    """Decode a whole file."""
    content = digest(path)
    if content is None:
        return Facts(None)
    try:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            read_image(path, None)
            return Facts(content, num_frames=1)
        return Facts(content, num_frames=count_frames(path))
    except ClipError as error:
        return Facts(content, error=str(error))


def digest(path: Path) -> str | None:
    """SHA-256 of a file's bytes, None when there is no such file."""
    if not path.is_file():
        return None
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()


def _group(entry: Entry) -> str | None:
    match = UCF_GROUP.fullmatch(entry.path.stem)
    return match[1] if match else None


def _map(function, paths: Iterable[Path], workers: int, progress: bool, title: str) -> Iterator[tuple[Path, object]]:
    """(path, function(path)) for every path, on `workers` processes."""
    paths = sorted(paths)
    show = partial(tqdm, total=len(paths), desc=title, disable=not progress or not paths)
    if workers == 0:
        yield from zip(paths, show(map(function, paths)), strict=True)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from zip(paths, show(pool.map(function, paths, chunksize=4)), strict=True)
