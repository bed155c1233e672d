"""Caption files, read in pieces: text lines, a column of a table, JSON lines; plain or tagged by part of speech."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PARTS_OF_SPEECH = ("adjective", "noun", "adverb", "verb")
KINDS = {".txt": "text", ".csv": "table", ".tsv": "table", ".jsonl": "json", ".ndjson": "json"}  # each also + .gz

Word = tuple[str, str]  # (word, part of speech)


@dataclass(frozen=True)
class TaggedCaption:
    """One caption: the key of its clip, and its (word, part of speech) pairs."""

    key: str
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Piece:
    """Consecutive lines of one caption file, not looked at yet.

    kind: "text" (a caption a line), "table" (the captions of a column, taken out already), "json" (records with a
        caption in `column`) or "tagged" (records with "words").
    number: of the first line, from 1. size: bytes of the file that were read for this piece.
    """

    path: str
    kind: str
    column: str
    number: int
    lines: tuple[bytes, ...]
    size: int


def read_tagged(*paths: str | Path) -> Iterator[TaggedCaption]:
    """The captions of JSONL files with lines {"key": ..., "text": ..., "words": [[word, part of speech], ...]}.

    Raises ValueError naming the file and line of anything else.
    """
    for path in paths:
        with open_bytes(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        record = json.loads(line)
                        words = tuple(clean_word(word, part) for word, part in record["words"])
                        yield TaggedCaption(str(record["key"]), words)
                    except (KeyError, TypeError, ValueError) as error:
                        raise ValueError(f"{path}, line {number}: no tagged caption: {error!r}") from error


def clean_word(word: str, part: str) -> Word:
    """Lower case, composed characters (NFC), single spaces inside. ValueError if that is no word of a known part."""
    if part not in PARTS_OF_SPEECH:
        raise ValueError(f"{word!r} is tagged {part!r}, expected one of {', '.join(PARTS_OF_SPEECH)}")
    if not isinstance(word, str) or not word.strip():
        raise ValueError(f"{word!r} is not a word")
    word = " ".join(unicodedata.normalize("NFC", word.lower()).split())
    word.encode()  # half characters of broken JSON could not be written again
    return word, part


def open_bytes(path: str | Path) -> BinaryIO:
    """A file for reading, unpacked on the way if its name ends in .gz."""
    return gzip.open(path) if str(path).endswith(".gz") else open(path, "rb")


def kind_of(path: str | Path, column: str) -> str:
    """The kind of pieces that `read_pieces` makes of this file, from its name and its first record.

    Raises ValueError for other names, and where neither "words" nor `column` is there; FileNotFoundError.
    """
    name = str(path).removesuffix(".gz")
    kind = KINDS.get(Path(name).suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: expected a name in {', '.join(KINDS)} (or one of these with .gz)")
    with open_bytes(path) as file:
        first = next((line for line in file if line.strip()), None)
    if kind == "table" and first is not None:
        _column_place(path, next(csv.reader([_decode(first, path, 1)], delimiter=_delimiter(name))), column)
    if kind == "json" and first is not None:
        record = _record(first, path, 1)
        if "words" in record:
            return "tagged"
        if column not in record:
            raise ValueError(f'{path}: a record has "words" or {column!r}, the first has {", ".join(record)}: --column')
    return kind


def read_pieces(paths: Sequence[str | Path], column: str, size: int) -> Iterator[Piece]:
    """The files in order, `size` lines a piece; no piece spans two files."""
    for path in map(str, paths):
        kind = kind_of(path, column)
        with open(path, "rb") as raw:
            file: BinaryIO = gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw
            lines = _table_column(file, path, column) if kind == "table" else file
            number, done, gathered = 1, 0, []
            for line in lines:
                gathered.append(line)
                if len(gathered) == size:
                    yield Piece(path, kind, column, number, tuple(gathered), raw.tell() - done)
                    number, done, gathered = number + size, raw.tell(), []
            if gathered:
                yield Piece(path, kind, column, number, tuple(gathered), raw.tell() - done)


def piece_texts(piece: Piece) -> list[str]:
    """The captions of an untagged piece, without blank ones. ValueError names the line of what is none."""
    texts = []
    for number, line in enumerate(piece.lines, piece.number):
        if piece.kind == "json":
            text = _record(line, piece.path, number).get(piece.column) if line.strip() else ""
            if not isinstance(text, str):
                raise ValueError(f"{piece.path}, line {number}: {piece.column!r} holds no text but {str(text)[:80]}")
        else:
            text = _decode(line, piece.path, number)
        texts.append(text.strip())
    return [text for text in texts if text]


def piece_words(piece: Piece) -> Iterator[tuple[int, list]]:
    """(line number, [[word, part of speech], ...]) of a tagged piece; the pairs are not checked."""
    for number, line in enumerate(piece.lines, piece.number):
        if line.strip():
            record = _record(line, piece.path, number)
            if not isinstance(record.get("words"), list):
                raise ValueError(f'{piece.path}, line {number}: no tagged caption: expected "words", as in the first')
            yield number, record["words"]


def _decode(line: bytes, path: str | Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, line {number} is not UTF-8: {error}") from error


def _record(line: bytes, path: str | Path, number: int) -> dict:
    try:
        record = json.loads(_decode(line, path, number))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number} is no JSON record: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}, line {number}: expected a JSON object a line, got {type(record).__name__}")
    return record


def _delimiter(path: str) -> str:
    return "\t" if path.removesuffix(".gz").lower().endswith(".tsv") else ","


def _column_place(path: str | Path, names: list[str], column: str) -> int:
    if column not in names:
        raise ValueError(f"{path} has no column {column!r} but {', '.join(names)}: give one of them as --column")
    return names.index(column)


def _table_column(file: BinaryIO, path: str, column: str) -> Iterator[bytes]:
    """The cells of one column; a cell may span lines, so that pieces count rows here."""
    rows = csv.reader(codecs.iterdecode(file, "utf-8-sig"), delimiter=_delimiter(path))
    try:
        names = next(rows, None)
        if names is None:
            return
        place = _column_place(path, names, column)
        for row in rows:
            if row and len(row) != len(names):
                raise ValueError(f"{len(row)} cells where the first row has {len(names)}")
            yield row[place].encode() if row else b""
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path}, table row near line {rows.line_num}: {error}") from error
