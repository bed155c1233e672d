"""Writing files safely: whole or not at all, never over an input, and by one owner at a time."""

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
_MAGIC = {  # suffix -> (offset, the bytes that files of this kind have there)
    ".png": (0, (b"\x89PNG\r\n\x1a\n",)),
    ".jpg": (0, (b"\xff\xd8\xff",)),
    ".gif": (0, (b"GIF8",)),
    ".mp4": (4, (b"ftyp",)),
    ".mov": (4, (b"ftyp", b"moov", b"mdat", b"wide", b"free")),
    ".mkv": (0, (b"\x1aE\xdf\xa3",)),
    ".webm": (0, (b"\x1aE\xdf\xa3",)),
    ".pdf": (0, (b"%PDF",)),
    ".npz": (0, (b"PK",)),
    ".pt": (0, (b"PK",)),
}
_TEXT = (".txt", ".csv", ".tsv", ".md", ".jsonl", ".svg", ".html", ".yaml", ".yml")


class InUseError(OSError):
    """Another process holds the lock of a file or folder."""


@contextmanager
def write_aside(path: str | Path) -> Iterator[Path]:
    """Yield a new name beside `path`, with its suffix; what is written there replaces `path` when the block succeeds.

    The content is flushed to the disk before the file is renamed, and the folder after it: whatever happens, `path`
    holds either all of the old content or all of the new. If the block raises, the new file is removed.
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
    """Remove what killed processes left unfinished in a folder. The caller must own the folder, see `lock`."""
    for left in Path(folder).glob(".*.partial*"):
        left.unlink(missing_ok=True)


@contextmanager
def lock(path: str | Path, seconds: float = 0) -> Iterator[None]:
    """Hold the lock file `path` while the block runs. It is released when the process ends, however that happens.

    Args:
        path: the lock file; it is created, and stays. Where a file system has no locks, there is a warning.
        seconds: how long to wait for a process that holds it. Raises InUseError afterwards.
    """
    release = take_lock(path, seconds)
    try:
        yield
    finally:
        release()


def take_lock(path: str | Path, seconds: float = 0) -> Callable[[], None]:
    """As `lock`, beyond a block: returns the function that releases the lock; it must be kept while it is held."""
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


def sha256(*paths: str | Path) -> str:
    """SHA-256 of the bytes of a file, or of several one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------ checks of outputs


def check_output(
    path: str | Path,
    suffixes: Iterable[str] = (),
    inputs: Iterable[str | Path | None] = (),
    owned: Callable[[Path], bool] | None = None,
) -> None:
    """Raise ValueError, before any work is done, unless a file may be written to `path`.

    Args:
        suffixes: what the name may end in, such as ".json"; empty for anything.
        inputs: files and folders that the command reads; None entries are skipped. Neither one of them may be
            replaced, under whatever name, nor a file inside one of the folders.
        owned: whether the existing file `path` is one that this command wrote before, and may replace. By default it
            must begin like a file of its suffix; a JSON file must have the entry "kind", as our reports do.

    Also refused are folders, files inside of model folders, and places that cannot be written to.
    """
    path, suffixes, inputs = Path(path), tuple(suffixes), tuple(inputs)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: expected a file name that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a device or a pipe, not a file: give another name")
    check_apart(inputs, [path])
    _check_no_model(path.parent, path)
    if path.exists():
        inside = [folder for folder in inputs if folder and Path(folder).is_dir() and _is_inside(path, Path(folder))]
        if not (owned or _looks_like_its_suffix)(path) or (inside and owned is None):
            reason = f"it is in the input {inside[0]}" if inside else "it is not a file that this command writes"
            raise ValueError(f"{path} exists and would be replaced, but {reason}: choose another name, or delete it")
    _check_writable(path.parent, path)


def check_output_folder(path: str | Path, inputs: Iterable[str | Path | None] = ()) -> None:
    """Raise ValueError, before any work is done, unless files may be written into the folder `path`.

    Refused are files, the folders and files that the command reads (`inputs`; None entries are skipped), model folders
    and what is inside of them, and places that cannot be written to.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is not a folder: give the name of a folder")
    check_apart(inputs, [path])
    _check_no_model(path, path)
    _check_writable(path, path)


def check_apart(inputs: Iterable[str | Path | None], outputs: Iterable[str | Path]) -> None:
    """Raise ValueError if an output is an input, however the two paths are spelled or linked."""
    inputs = [Path(source) for source in inputs if source is not None]
    for path in map(Path, outputs):
        for source in inputs:
            if source.resolve() == path.resolve() or (source.exists() and path.exists() and source.samefile(path)):
                raise ValueError(f"{path} is an input and would be overwritten: choose another place for the output")


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a saved model."""
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in _MODEL_FILES)


def _check_no_model(folder: Path, path: Path) -> None:
    folder = folder.resolve()
    model = next((parent for parent in (folder, *folder.parents) if is_model_folder(parent)), None)
    if model is not None:
        raise ValueError(f"{path} is in {model}, the folder of a saved model: choose another place for the output")


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _check_writable(folder: Path, path: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror or error}): choose another place") from error


def _looks_like_its_suffix(path: Path) -> bool:
    """Whether an existing file is empty, or begins as files of its suffix that we write do."""
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        start = file.read(4096)
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
    offset, magics = _MAGIC.get(suffix, (0, ()))
    return start[offset:].startswith(magics) if magics else False
