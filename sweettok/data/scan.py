"""Check of lists: unreadable files, clips that are too short, listed twice, or shared by two lists."""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from sweettok.data.backends import ClipError
from sweettok.data.config import DataConfig
from sweettok.data.lists import MAX_CLASSES, Entry
from sweettok.data.reader import count_frames, is_image, read_image, read_within
from sweettok.data.shards import digest

KINDS = {
    "missing": "there is no such file",
    "unreadable": "does not decode to its end",
    "slow": "is not read in time",
    "fatal": "ends the process that reads it",
    "short": "has fewer frames than a clip",
    "repeated": "is in the list already",
    "shared": "is in the other list too",
    "label": "has a label out of range",
    "group": "was cut from the same recording as a clip of the other list",
}
AT_ONCE = 1024  # files for which the same processes are used
UCF_GROUP = re.compile(r"v_(\w+_g\d+)_c\d+")  # clips of a UCF-101 group are of the same recording


@dataclass(frozen=True)
class Problem:
    """A problem of one clip of a list; `kind` is one of KINDS."""

    kind: str
    entry: Entry
    detail: str

    def __str__(self) -> str:
        where, path = self.entry.where, str(self.entry.path)
        return f"{path if where == path else f'{where}: {path}'} {KINDS[self.kind]} ({self.detail})"


@dataclass(frozen=True)
class Facts:
    """SHA-256 of a file's bytes and its number of frames, or the kind of problem and its detail."""

    digest: str | None = None
    num_frames: int = 0
    kind: str | None = None
    detail: str = ""


def scan(
    entries: Sequence[Entry],
    against: Sequence[Entry] = (),
    frames: int = 17,
    stride: int = 1,
    workers: int = 0,
    progress: bool = False,
    timeout: float = DataConfig.read_timeout,
) -> list[Problem]:
    """Problems of the clips in a list, in its order, then of the other list's; every file is decoded to its end.

    Args:
        entries, against: from `lists.read_entries`. `against` is another list, such as the validation list, that should
            have no file, content or UCF-101 group in common with the first. Its files are not decoded.
        frames, stride: of a clip; shorter videos are reported.
        workers: processes that read files; with 0, a harmful file may end this process.
        timeout: seconds that reading a file may take.
    """
    facts = dict(_map(partial(inspect, timeout=timeout), entries, workers, progress, "decoding"))
    compared = dict(_map(partial(inspect, timeout=timeout, decode=False), against, workers, progress, "comparing"))
    others = {compared[e.path].digest: e for e in against if compared[e.path].digest}
    other_paths = {_resolved(e): e for e in against}
    groups = {_group(e): e for e in against if _group(e)}
    span = (frames - 1) * stride + 1
    seen: dict[str, Entry] = {}
    problems = []
    for entry in entries:
        fact = facts[entry.path]
        if fact.kind is not None:
            problems.append(Problem(fact.kind, entry, fact.detail))
        elif fact.num_frames < span:
            problems.append(Problem("short", entry, f"{fact.num_frames} of {span} frames"))
        names = [name for name in (fact.digest, f"key {entry.key}") if name is not None]
        same = next((seen[name] for name in names if name in seen), None)
        if same is not None:
            problems.append(Problem("repeated", entry, f"{same.where}: {same.path}"))
        seen.update((name, entry) for name in names if name not in seen)
        if entry.label is not None and not 0 <= entry.label < MAX_CLASSES:
            problems.append(Problem("label", entry, f"{entry.label + 1}, expected 1..{MAX_CLASSES}"))
        same = others.get(fact.digest) or other_paths.get(_resolved(entry))
        if same is not None:
            problems.append(Problem("shared", entry, f"{same.where}: {same.path}"))
        elif _group(entry) in groups:
            problems.append(Problem("group", entry, f"{groups[_group(entry)].path}"))
    unknown = [(e, compared[e.path]) for e in against if compared[e.path].kind not in (None, "missing")]
    return problems + [Problem(fact.kind, entry, fact.detail) for entry, fact in unknown]


def inspect(path: Path, timeout: float, decode: bool = True) -> Facts:
    """Read a whole file, and decode it."""
    try:
        return read_within(timeout, path, partial(_inspect, path, decode))
    except ClipError as error:
        return Facts(kind="slow", detail=_reason(path, error))


def _inspect(path: Path, decode: bool) -> Facts:
    content, num_frames = None, 0
    try:
        if isinstance(path, Path) and not path.is_file():
            return Facts(kind="missing", detail="check the list and its root")
        content = digest(path)
        if decode:
            num_frames = read_image(path, None).shape[1] if is_image(path) else count_frames(path)
    except (ClipError, OSError) as error:
        return Facts(content, kind="unreadable", detail=_reason(path, error))
    return Facts(content, num_frames)


def _reason(path: Path, error: Exception) -> str:
    return str(error).removeprefix(f"{path}: ")


def _resolved(entry: Entry) -> Path | str:
    return entry.path.resolve() if isinstance(entry.path, Path) else entry.path


def _group(entry: Entry) -> str | None:
    match = UCF_GROUP.fullmatch(entry.path.stem)
    return match[1] if match else None


def _map(
    inspect: Callable[[Path], Facts], entries: Sequence[Entry], workers: int, progress: bool, title: str
) -> Iterator[tuple[Path, Facts]]:
    """Every path once with the result of `inspect`, on `workers` processes.

    When a process dies, files are read one by one until the harmful one is found.
    """
    paths, done, alone = sorted({entry.path for entry in entries}, key=str), 0, False
    with tqdm(total=len(paths), desc=title, disable=not progress or not paths) as bar:

        def count(facts: Facts) -> tuple[Path, Facts]:
            nonlocal done
            bar.update()
            done += 1
            return paths[done - 1], facts

        if workers == 0:
            yield from map(count, map(inspect, paths))
        while done < len(paths):
            with ProcessPoolExecutor(1 if alone else workers) as pool:
                try:
                    yield from map(count, pool.map(inspect, paths[done : done + AT_ONCE]))
                    alone = False
                except BrokenProcessPool:
                    if alone:
                        yield count(Facts(kind="fatal", detail="it crashes the decoder, or takes all memory"))
                    alone = not alone
