"""Many captions into packed chunks on disk: by several processes, and going on where an earlier call stopped."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tqdm import tqdm

from sweettok.priors.captions import Piece, kind_of, piece_texts, piece_words, read_pieces
from sweettok.priors.counting import Chunk, load_chunk, pack, save_chunk
from sweettok.priors.tagging import Tagger

PLAN, LOCK = "plan.json", ".building"
FORMAT = 1


class ChunkFolder:
    """The chunks of a work folder, loaded one at a time, as often as asked."""

    def __init__(self, folder: Path, length: int) -> None:
        self.folder, self.length = folder, length

    def __iter__(self) -> Iterator[Chunk]:
        return (load_chunk(_chunk_path(self.folder, index)) for index in range(self.length))

    def remove(self) -> None:
        """Delete the chunks, the plan, and the folder if nothing else lies in it."""
        for path in (*self.folder.glob("chunk-*.safetensors*"), self.folder / PLAN):
            path.unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


@contextmanager
def alone_in(*folders: str | Path) -> Iterator[None]:
    """Inside, no other build has any of these folders, which are made. ValueError where one has.

    The system gives up the locks of a process that dies. Where a disk knows no locks, nothing is noticed.
    """
    with ExitStack() as stack:
        for folder in {Path(folder).resolve() for folder in folders}:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / LOCK).open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"another build writes to {folder}: wait for it, or give another folder") from error
            except OSError:
                pass  # a network disk without locks
            stack.callback((folder / LOCK).unlink, missing_ok=True)
        yield


def pack_files(
    paths: Sequence[str | Path],
    work: str | Path,
    tagger: Tagger | None = None,
    column: str = "text",
    processes: int = 1,
    chunk_size: int = 20_000,
    progress: bool = False,
) -> ChunkFolder:
    """Tag (unless they are tagged) and pack the captions of `paths` into `work`, `chunk_size` lines a chunk.

    What lies in `work` already is kept. The chunks do not depend on `processes`; each of them holds a piece and its
    own `tagger`, which must therefore be picklable when there are several.

    Raises ValueError when `work` was begun with other files or settings, when plain captions come without a tagger,
    and for broken captions; FileNotFoundError. All but the last are seen before the work begins.
    """
    work = Path(work)
    if any(kind_of(path, column) != "tagged" for path in paths) and tagger is None:
        raise ValueError("these captions are not tagged by part of speech, and no tagger was given")
    _claim(work, paths, tagger, column, chunk_size)
    sizes = sum(os.path.getsize(path) for path in paths)
    with tqdm(total=sizes, unit="B", unit_scale=True, desc="captions", disable=None if progress else True) as bar:
        length = 0
        for piece in _packed(_missing(read_pieces(paths, column, chunk_size), work), tagger, processes):
            length += 1
            bar.update(piece.size)
    return ChunkFolder(work, length)


def _chunk_path(work: Path, index: int) -> Path:
    return work / f"chunk-{index:06d}.safetensors"


def _claim(work: Path, paths: Sequence[str | Path], tagger: Tagger | None, column: str, chunk_size: int) -> None:
    """Write down what the chunks of this folder are made of, or check that it is the same."""
    files = [[str(path), os.path.getsize(path), os.stat(path).st_mtime_ns] for path in paths]
    plan = {"format": FORMAT, "files": files, "column": column, "tagger": tagger and tagger.name, "lines": chunk_size}
    path = work / PLAN
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [key for key in plan if before.get(key) != plan[key]]
        if other:
            raise ValueError(
                f"{work} holds captions packed with other {', '.join(other)}: give another work folder, or remove it"
            )
        return
    work.mkdir(parents=True, exist_ok=True)
    aside = work / f"{PLAN}.tmp"
    aside.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)


def _missing(pieces: Iterator[Piece], work: Path) -> Iterator[tuple[Piece, Path | None]]:
    """Each piece with the file it is to be packed into, or None where that is there."""
    for index, piece in enumerate(pieces):
        path = _chunk_path(work, index)
        yield piece, None if path.is_file() else path


def _packed(work: Iterator[tuple[Piece, Path | None]], tagger: Tagger | None, processes: int) -> Iterator[Piece]:
    """The pieces, as they are finished; a few more than there are processes are held at a time."""
    if processes == 1:
        for piece, path in work:
            if path is not None:
                _pack_piece(piece, path, tagger)
            yield piece
        return
    # Not forked: the threads of numerical libraries do not survive that.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
    running: dict[Future, Piece] = {}
    try:
        for piece, path in work:
            if path is None:
                yield piece
                continue
            running[pool.submit(_pack_piece, piece, path, tagger)] = piece
            if len(running) > processes + 2:
                yield from _finished(running)
        while running:
            yield from _finished(running)
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(running: dict[Future, Piece]) -> Iterator[Piece]:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        future.result()
        yield running.pop(future)


def _pack_piece(piece: Piece, path: Path, tagger: Tagger | None) -> None:
    save_chunk(_pack_tagged(piece) if piece.kind == "tagged" else pack(tagger.tag(piece_texts(piece))), path)


def _pack_tagged(piece: Piece) -> Chunk:
    captions = list(piece_words(piece))
    try:
        return pack(words for _, words in captions)
    except (TypeError, ValueError):
        for number, words in captions:
            try:
                pack([words])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{piece.path}, line {number}: no tagged caption: {error!r}") from error
        raise
