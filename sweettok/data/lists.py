"""Lists of clips and their classes: list files, CSV files and folders.

Labels in files count from 1, so the class index is `label - 1`. Class folders are indexed from 0 in code-point order of
their names, or in the order of `classes`. For UCF-101 the two differ: sorted by name, as in the release, HammerThrow
comes before Hammering and JumpRope before JumpingJack, so the indices 34/35 and 46/47 are swapped.
"""

import csv
import hashlib
import io
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sweettok.data.shards import Member, as_source, check_allowed, is_local
from sweettok.data.writer import write_lines

VIDEO_SUFFIXES = (".avi", ".mp4", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SUFFIXES = VIDEO_SUFFIXES + IMAGE_SUFFIXES
MAX_CLASSES = 1_000_000  # labels above it are taken for mistakes
SHOWN = 10  # items named in an error


@dataclass(frozen=True)
class ClipList:
    """Clips in a fixed order. `labels` are class indices from 0; `keys` are unique: relative paths without suffix."""

    paths: tuple[Path | Member, ...]
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...] | None
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over (key, label) in order: identifies the clips, wherever they are stored."""
        return clips_hash(self.keys, self.labels)

    def subset(self, indices: Iterable[int]) -> "ClipList":
        """The clips at `indices`, in that order, with their class indices kept."""
        indices = list(indices)
        labels = tuple(self.labels[i] for i in indices) if self.labels is not None else None
        paths, keys = tuple(self.paths[i] for i in indices), tuple(self.keys[i] for i in indices)
        return ClipList(paths, labels, self.class_names, keys)


def clip_lines(keys: Sequence[str], labels: Sequence[int] | None = None) -> str:
    """`key TAB class index` lines of clips; without labels nothing follows the TAB."""
    pairs = zip(keys, labels if labels is not None else ("",) * len(keys), strict=True)
    return "".join(f"{key}\t{label}\n" for key, label in pairs)


def clips_hash(keys: Sequence[str], labels: Sequence[int] | None = None) -> str:
    """SHA-256 of `clip_lines`."""
    return hashlib.sha256(clip_lines(keys, labels).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """One clip of a source."""

    path: Path | Member
    key: str
    label: int | None  # class index
    where: str  # file and line that list it


def load_clips(
    source: str | Path, root: str | Path | None = None, classes: int | Sequence[str] | str | Path | None = None
) -> ClipList:
    """Clips from a list file, a CSV file or a folder.

    Labels in files count from 1, class indices from 0; class folders are numbered in code-point order of their names.

    Args:
        source: a text file with `path TAB label` lines (the release's lists) or only paths; a `.csv` file with the
            column `path` and optionally `label`; a folder of class folders; or a folder of clips without classes.
            A path may be of a file in a tar shard, see `sweettok.data.shards`.
            Images in a folder that has videos are left out, with a warning.
        root: the folder that paths in a file are relative to; by default the file's.
        classes: class names in order, a file with one name a line, or their number. Labels must be in range.

    Raises FileNotFoundError for missing clips, ValueError for malformed lines, labels out of range and repeated clips.
    """
    names = _class_names(classes)
    entries, folders = read_entries(source, root, names)
    count = classes if isinstance(classes, int) else len(names) if names is not None else None
    most = count or MAX_CLASSES
    bad = [f"{entry.where}: {entry.label + 1}" for entry in entries if not 0 <= (entry.label or 0) < most]
    if bad:
        raise ValueError(f"labels must be 1..{most}{some(bad)}")
    _check_files(entries, source)
    repeated = [key for key, times in Counter(entry.key for entry in entries).items() if times > 1]
    if repeated:
        raise ValueError(f"{source}: {len(repeated)} clips are listed more than once{some(repeated)}")
    labels = tuple(entry.label for entry in entries) if entries[0].label is not None else None
    class_names = (names or folders) if labels is not None else None
    return ClipList(tuple(e.path for e in entries), labels, class_names, tuple(e.key for e in entries))


def read_entries(
    source: str | Path, root: str | Path | None = None, names: Sequence[str] | None = None
) -> tuple[list[Entry], tuple[str, ...] | None]:
    """All clips of a source, without checking files and repetitions; and the class names of a folder."""
    if str(source).endswith(".tar"):
        raise ValueError(f"{source}: tar shards are read by a list: sweettok data index SHARDS --out LIST")
    source = Path(source)
    if source.is_dir():
        if root is not None:
            raise ValueError(f"{source} is a folder; root is for list files")
        entries, folders = _read_folder(source, names)
    elif source.is_file():
        root = Path(root) if root is not None else source.parent
        folders = None
        rows = _read_csv(source) if source.suffix.lower() == ".csv" else _read_list(source)
        entries = [_entry(source, root, number, path, label) for number, path, label in rows]
    else:
        raise FileNotFoundError(f"no list file or folder of clips at {source}")
    if not entries:
        raise ValueError(f"{source}: no clips in it")
    if len({entry.label is None for entry in entries}) > 1:
        first = next(entry for entry in entries if entry.label is None)
        raise ValueError(f"{first.where}: no label, but other lines have one")
    return entries, folders


def find_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Files with these suffixes anywhere below a folder, sorted; hidden ones and cycles of links are left out."""
    found = []
    inside = {str(folder): {os.path.realpath(folder)}}  # folder -> real paths of it and of its parents
    for parent, folders, names in os.walk(folder, followlinks=True):
        above = inside.pop(parent)
        real = {name: os.path.realpath(os.path.join(parent, name)) for name in folders if not name.startswith(".")}
        folders[:] = [name for name in real if real[name] not in above]
        inside.update((os.path.join(parent, name), above | {real[name]}) for name in folders)
        found += [Path(parent, n) for n in names if not n.startswith(".") and Path(n).suffix.lower() in suffixes]
    return sorted(found)


def write_list(path: str | Path, entries: Iterable[tuple[str, int | None]]) -> None:
    """Write (path, class index or None) pairs as a list file, with labels from 1."""
    write_lines(path, list_lines(entries))


def list_lines(entries: Iterable[tuple[str, int | None]]) -> list[str]:
    """The lines of a list file, as `write_list` writes them."""
    return [name if index is None else f"{name}\t{index + 1}" for name, index in entries]


def read_names(path: str | Path) -> tuple[str, ...]:
    """Names from a file, one a line, in order."""
    return tuple(line.strip() for line in _text(Path(path)).splitlines() if line.strip())


def _read_list(source: Path) -> Iterable[tuple[int, str, str | None]]:
    for number, line in enumerate(_text(source).split("\n"), start=1):
        fields = line.split("\t")
        if not line.strip():
            continue
        if len(fields) > 2 or not fields[0].strip():
            raise ValueError(f"{source}, line {number}: expected 'path TAB label' or a path alone, got {line!r}")
        yield number, fields[0].strip(), fields[1].strip() if len(fields) == 2 else None


def _read_csv(source: Path) -> Iterable[tuple[int, str, str | None]]:
    reader = csv.DictReader(io.StringIO(_text(source)))
    columns = reader.fieldnames or []
    if "path" not in columns:
        raise ValueError(f"{source}: the header must name a 'path' column (and 'label'), got {columns}")
    for row in reader:
        if not row["path"] or None in row or None in row.values():
            where = f"{source}, line {reader.line_num}"
            raise ValueError(f"{where}: expected the columns {columns}, got {list(row.values())}")
        yield reader.line_num, row["path"], row["label"].strip() if "label" in row else None


def _text(source: Path) -> str:
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: not a UTF-8 text file; expected a list of clips") from error
    if "\0" in text:
        number = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{source}, line {number}: there is a NUL character; expected a text file")
    return text


def _entry(source: Path, root: Path, number: int, path: str, label: str | None) -> Entry:
    where = f"{source}, line {number}"
    if label is not None and not label.removeprefix("-").isdecimal():
        raise ValueError(f"{where}: the label must be a whole number from 1, got {label!r}")
    index = None if label is None else int(label) - 1
    clip = as_source(path)
    if isinstance(clip, Member):
        try:
            check_allowed(clip.shard)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        return Entry(clip.moved(root / clip.shard) if is_local(clip.shard) else clip, clip.key, index, where)
    full = root / path
    name = full.relative_to(root) if full.is_relative_to(root) else full
    return Entry(full, _key(name), index, where)


def _key(name: Path) -> str:
    return name.with_suffix("").as_posix().lstrip("/")


def _read_folder(source: Path, names: Sequence[str] | None) -> tuple[list[Entry], tuple[str, ...] | None]:
    files = [path.relative_to(source) for path in find_files(source, SUFFIXES)]
    images = [str(file) for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if 0 < len(images) < len(files):
        text = f"{source} has videos, so its {len(images)} images are left out; to use them too, list them in a file"
        warnings.warn(f"{text}{some(images)}", stacklevel=4)
        files = [file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES]
    if not any(len(file.parts) > 1 for file in files):
        return [Entry(source / file, _key(file), None, str(source / file)) for file in files], None
    loose = [str(file) for file in files if len(file.parts) == 1]
    if loose:
        raise ValueError(f"{source}: has class folders, and {len(loose)} clips outside of them{some(loose)}")
    folders = tuple(sorted({file.parts[0] for file in files}))
    order = {name: index for index, name in enumerate(names or folders)}
    unknown = [folder for folder in folders if folder not in order]
    if unknown:
        raise ValueError(f"{source}: {len(unknown)} class folders are not among the classes{some(unknown)}")
    return [Entry(source / file, _key(file), order[file.parts[0]], str(source / file)) for file in files], folders


def _class_names(classes: int | Sequence[str] | str | Path | None) -> tuple[str, ...] | None:
    if classes is None or isinstance(classes, int):
        return None
    names = read_names(classes) if isinstance(classes, str | Path) else tuple(classes)
    if len(set(names)) < len(names):
        raise ValueError(f"class names must differ, got {list(names)}")
    return names


def _check_files(entries: Sequence[Entry], source: str | Path) -> None:
    wanted = defaultdict(list)
    for path in dict.fromkeys(map(local_file, entries)):
        if path is not None:
            wanted[path.parent].append(path)
    missing = []
    for folder, paths in wanted.items():  # one listing per folder: checking file by file is slow on network disks
        present = set(os.listdir(folder)) if folder.is_dir() else set()
        missing += [str(path) for path in paths if path.name not in present]
    if missing:
        hint = ""
        if missing[0].split()[-1].isdecimal():
            hint = " (path and label must be separated by a TAB; official UCF-101 split files need import-ucf101)"
        raise FileNotFoundError(f"{source}: {len(missing)} of {len(entries)} clips are missing{hint}{some(missing)}")


def local_file(entry: Entry) -> Path | None:
    """The file or the shard of a clip, if it is on this machine."""
    if isinstance(entry.path, Member):
        return Path(entry.path.shard) if is_local(entry.path.shard) else None
    return entry.path


def relative_path(path: Path | Member, base: Path) -> str:
    """The path of a clip in a list whose paths are relative to `base`."""
    if isinstance(path, Member):
        return path.moved(os.path.relpath(path.shard, base)) if is_local(path.shard) else path
    return os.path.relpath(path, base)


def some(items: Iterable[str]) -> str:
    """The first items, one a line, to end an error message."""
    items = list(items)
    more = [f"... and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return ":\n  " + "\n  ".join([*items[:SHOWN], *more])
