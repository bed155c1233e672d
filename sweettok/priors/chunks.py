"""Convert captions to files of word indices, in several processes; an interrupted conversion can be resumed."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tqdm import tqdm

from sweettok.priors.captions import Piece, Word, clean_word, kind_of, piece_texts, piece_words, read_pieces
from sweettok.priors.tagging import SpacyTagger
from sweettok.store import write_aside

PLAN, LOCK = "plan.json", ".lock"
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Chunk:
    """Captions as word indices."""

    words: tuple[Word, ...]  # distinct
    ids: np.ndarray  # int32 (N,), indices of the words of all captions, one caption after the other
    lengths: np.ndarray  # int32 (captions,), number of words of each caption


def pack(captions: Iterable[Sequence[Sequence[str]]]) -> Chunk:
    """Convert captions, each a sequence of (word, part of speech), to one chunk. ValueError: see `clean_word`."""
    index: dict[Word, int] = {}
    spellings: dict[tuple[str, str], int] = {}  # a cache, so that each spelling is cleaned once
    ids, lengths = [], []
    for caption in captions:
        for pair in map(tuple, caption):
            if pair not in spellings:
                spellings[pair] = index.setdefault(clean_word(*pair), len(index))
            ids.append(spellings[pair])
        lengths.append(len(caption))
    return Chunk(tuple(index), np.array(ids, dtype=np.int32), np.array(lengths, dtype=np.int32))


def load_chunk(path: Path) -> Chunk:
    """Read a chunk file; ValueError if it is not one."""
    try:
        with safe_open(path, framework="np") as file:
            words = tuple((word, part) for word, part in json.loads(file.metadata()["words"]))
            return Chunk(words, file.get_tensor("ids"), file.get_tensor("lengths"))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a chunk of captions: delete it ({error})") from error


class ChunkFolder:
    """The chunks of a work folder; each iteration loads them one at a time."""

    def __init__(self, folder: Path, length: int) -> None:
        self.folder, self.length = folder, length

    def __iter__(self) -> Iterator[Chunk]:
        return (load_chunk(_chunk_path(self.folder, index)) for index in range(self.length))

    def remove(self) -> None:
        """Delete the chunks, and the folder if it is empty then."""
        for path in (*self.folder.glob("chunk-*.safetensors"), self.folder / PLAN, self.folder / LOCK):
            path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def pack_files(
    paths: Sequence[str | Path],
    work: str | Path,
    tagger: SpacyTagger | None = None,
    column: str = "text",
    processes: int = 1,
    chunk_size: int = 20_000,
) -> ChunkFolder:
    """Tag the captions of files, unless they are tagged, and write them as chunks into the folder `work`.

    Existing chunks are kept. The chunks do not depend on the number of processes.

    Args:
        tagger: not needed if all files are tagged; picklable if there are several processes.
        column: column or key of the captions. chunk_size: lines per chunk.

    Raises:
        ValueError: `work` holds chunks of other files or settings, a tagger is missing, or a caption cannot be read.
        FileNotFoundError: a file does not exist.
    """
    work = Path(work)
    if any(kind_of(path, column) != "tagged" for path in paths) and tagger is None:
        raise ValueError("these captions are not tagged by part of speech, and no tagger was given")
    _check_plan(work, paths, tagger, column, chunk_size)
    pieces = enumerate(read_pieces(paths, column, chunk_size))
    sizes, length = sum(os.path.getsize(path) for path in paths), 0
    with tqdm(total=sizes, unit="B", unit_scale=True, desc="captions", disable=None) as bar:
        for piece in _pack_pieces(pieces, work, tagger, processes):
            length += 1
            bar.update(piece.size)
    return ChunkFolder(work, length)


def _chunk_path(work: Path, index: int) -> Path:
    return work / f"chunk-{index:06d}.safetensors"


def _check_plan(
    work: Path, paths: Sequence[str | Path], tagger: SpacyTagger | None, column: str, chunk_size: int
) -> None:
    """Record the files and settings of the chunks, or compare them with those of existing chunks."""
    files = [[str(path), os.path.getsize(path), os.stat(path).st_mtime_ns] for path in paths]
    plan = {"format": FORMAT, "files": files, "column": column, "tagger": tagger and tagger.name, "lines": chunk_size}
    path = work / PLAN
    if not path.is_file():
        with write_aside(path) as aside:
            aside.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if changed := ", ".join(key for key in plan if before.get(key) != plan[key]):
        raise ValueError(f"{work} holds captions packed with other {changed}: give another work folder, or delete it")


def _pack_pieces(
    pieces: Iterator[tuple[int, Piece]], work: Path, tagger: SpacyTagger | None, processes: int
) -> Iterator[Piece]:
    """Write missing chunks; yields each piece when its chunk is there."""
    jobs = ((piece, _chunk_path(work, index), tagger) for index, piece in pieces)
    if processes == 1:
        for job in jobs:
            yield _pack_piece(*job)
        return
    # Spawned, because the threads of numerical libraries do not survive a fork.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
    running: deque[Future[Piece]] = deque()  # bounded, to save memory
    try:
        for job in jobs:
            running.append(pool.submit(_pack_piece, *job))
            if len(running) > processes + 2:
                yield running.popleft().result()
        yield from (future.result() for future in running)
    finally:
        pool.shutdown(cancel_futures=True)


def _pack_piece(piece: Piece, path: Path, tagger: SpacyTagger | None) -> Piece:
    if path.is_file():
        return piece
    chunk = _pack_tagged(piece) if piece.kind == "tagged" else pack(tagger.tag(piece_texts(piece)))
    with write_aside(path) as aside:
        aside.write_bytes(save({"ids": chunk.ids, "lengths": chunk.lengths}, {"words": json.dumps(chunk.words)}))
    return piece


def _pack_tagged(piece: Piece) -> Chunk:
    captions = list(piece_words(piece))
    try:
        return pack(words for _, words in captions)
    except (TypeError, ValueError):
        for number, words in captions:  # find the line for the message
            try:
                pack([words])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{piece.path}, line {number}: not a tagged caption: {error!r}") from error
        raise
