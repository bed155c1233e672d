"""Safe writing of files: atomic, never over an input, and by one process at a time."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_BLOCK = 1 << 20
_MODEL_FILES = ("model.safetensors", "model.safetensors.index.json")
COMMENT = "output of sweettok"  # in the metadata of pictures and videos that commands may replace
_MARKED = (".png", ".gif", ".mp4", ".mov", ".mkv")
_TEXT = (".txt", ".csv", ".md", ".jsonl")


class InUseError(OSError):
    """Another process holds the lock of a file or folder."""


@contextmanager
def write_aside(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file written there replaces `path` when the block succeeds.

    The file is flushed to the disk before it is renamed, and the folder afterwards, so that `path` always has either
    the old content or the new. If the block raises, the temporary file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.partial{path.suffix}")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: str | Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    folder = os.path.isdir(path)
    if folder and os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError:
        if not folder:  # some network disks cannot flush folders
            raise
    finally:
        os.close(descriptor)


def remove_asides(folder: str | Path) -> None:
    """Remove unfinished files of killed processes from a folder, which the caller must have locked."""
    for left in Path(folder).glob(".*.partial*"):
        left.unlink(missing_ok=True)


@contextmanager
def lock(path: str | Path, seconds: float = 0) -> Iterator[None]:
    """Hold the lock file `path` during the block; it is also released when the process ends.

    Args:
        path: the lock file, which is created and not removed. On file systems without locks there is a warning.
        seconds: how long to wait for another process that holds it, before InUseError is raised.
    """
    release = take_lock(path, seconds)
    try:
        yield
    finally:
        release()


def take_lock(path: str | Path, seconds: float = 0) -> Callable[[], None]:
    """As `lock`, until the returned function is called or garbage-collected."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path, timeout=seconds, thread_local=False)
    try:
        held.acquire()
    except Timeout:
        raise InUseError(f"{path.parent} is in use: another process holds {path.name} in it") from None
    except NotImplementedError:
        warnings.warn(f"{path}: this file system has no locks; run only one command on it at a time", stacklevel=2)
    return held.release


def cache_folder() -> Path | None:
    """Folder for what is computed again if it is missing: SWEETTOK_CACHE, by default sweettok in the user's cache.

    None if SWEETTOK_CACHE is empty, or the user has no home folder: then nothing is kept.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "sweettok")
    chosen = os.environ.get("SWEETTOK_CACHE", str(default))
    try:
        return Path(chosen).expanduser() if chosen else None
    except RuntimeError:  # no home folder
        return None


def sha256(*paths: str | Path) -> str:
    """SHA-256 of the bytes of a file, or of several joined."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def check_output(
    path: str | Path,
    suffixes: Iterable[str] = (),
    inputs: Iterable[str | Path | None] = (),
    owned: Callable[[Path], bool] | None = None,
) -> None:
    """Raise ValueError unless a file may be written to `path`; to be called before any work is done.

    Folders, files in model folders and paths that cannot be written are refused as well.

    Args:
        suffixes: allowed suffixes, such as ".json"; empty for any.
        inputs: files and folders that the command reads, or None. None of them may be replaced, whatever the spelling
            of the path, nor a file in one of the folders.
        owned: whether this command wrote the existing file `path` before, and may replace it. By default pictures and
            videos must have our comment in their metadata, and JSON files the entry "kind", as our reports do.
    """
    path, suffixes, inputs = Path(path), tuple(suffixes), tuple(inputs)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: expected a file name that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a device or a pipe, not a file: give another name")
    _check_no_input(inputs, path)
    _check_no_model(path.parent, path)
    if path.exists():
        folders = [Path(source).resolve() for source in inputs if source and Path(source).is_dir()]
        inside = [folder for folder in folders if path.resolve().is_relative_to(folder)]
        if not (owned or _looks_like_ours)(path) or (inside and owned is None):
            reason = f"it is in the input {inside[0]}" if inside else "it is not a file that this command writes"
            raise ValueError(f"{path} exists and would be replaced, but {reason}: choose another name, or delete it")
    _check_writable(path.parent, path)


def check_output_folder(path: str | Path, inputs: Iterable[str | Path | None] = ()) -> None:
    """Raise ValueError unless files may be written into the folder `path`; to be called before any work is done.

    Files, `inputs` of the command, model folders, folders in them, and paths that cannot be written are refused.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is not a folder: give the name of a folder")
    _check_no_input(inputs, path)
    _check_no_model(path, path)
    _check_writable(path, path)


def _check_no_input(inputs: Iterable[str | Path | None], path: Path) -> None:
    for source in [Path(source) for source in inputs if source is not None]:
        if source.resolve() == path.resolve() or (source.exists() and path.exists() and source.samefile(path)):
            raise ValueError(f"{path} is an input and would be overwritten: choose another place for the output")


def _check_no_model(folder: Path, path: Path) -> None:
    folder = folder.resolve()
    for parent in (folder, *folder.parents):
        if (parent / "config.json").is_file() and any((parent / name).is_file() for name in _MODEL_FILES):
            raise ValueError(f"{path} is in {parent}, the folder of a saved model: choose another place for the output")


def _check_writable(folder: Path, path: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror or error}): choose another place") from error


def _looks_like_ours(path: Path) -> bool:
    """Whether a file is empty, or like the files of its suffix that we write."""
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        start = file.read(4096)
        file.seek(max(0, path.stat().st_size - 4096))
        end = file.read()
    if not start:
        return True
    if suffix == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return False
        return isinstance(content, dict) and "kind" in content
    if suffix in _TEXT:
        return b"\0" not in start
    return suffix in _MARKED and COMMENT.encode() in start + end
