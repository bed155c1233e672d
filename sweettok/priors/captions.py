"""Read caption files in pieces: lines of text, a column of a table, or JSON lines with or without tagged words."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PARTS_OF_SPEECH = ("adjective", "noun", "adverb", "verb")
KINDS = {".txt": "text", ".csv": "table", ".tsv": "table", ".jsonl": "json", ".ndjson": "json"}  # each also + .gz

Word = tuple[str, str]  # (word, part of speech)


@dataclass(frozen=True)
class Piece:
    """Consecutive lines of one caption file, not parsed yet."""

    path: str
    kind: str  # "text" (captions), "table" (cells of `column`), "json" (records with `column`), "tagged" (with "words")
    column: str
    number: int  # of the first line, from 1
    lines: tuple[bytes, ...]
    size: int  # bytes of the file


def clean_word(word: str, part: str) -> Word:
    """The word in lower case, composed Unicode (NFC) and with single spaces. ValueError for an empty or wrong word."""
    if part not in PARTS_OF_SPEECH:
        raise ValueError(f"{word!r} is tagged {part!r}, expected one of {', '.join(PARTS_OF_SPEECH)}")
    if not isinstance(word, str) or not word.strip():
        raise ValueError(f"{word!r} is not a word")
    word = " ".join(unicodedata.normalize("NFC", word.lower()).split())
    word.encode()  # raises ValueError for lone surrogates, which cannot be written to a file
    return word, part


@contextmanager
def open_lines(path: str | Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """A binary file, and the same decompressed if its name ends in .gz. ValueError if it cannot be decompressed."""
    with open(path, "rb") as raw:
        try:
            yield raw, gzip.GzipFile(fileobj=raw) if str(path).lower().endswith(".gz") else raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is damaged or incomplete: {error}") from error


def kind_of(path: str | Path, column: str) -> str:
    """`Piece.kind` of a file, from its name and first record. ValueError for an unknown suffix or a missing column."""
    kind = KINDS.get(_suffix(path))
    if kind is None:
        raise ValueError(f"{path}: expected a name in {', '.join(KINDS)} (or one of these with .gz)")
    with open_lines(path) as (_, file):
        first = next((line for line in file if line.strip()), None)
    if kind == "table" and first is not None:
        _column_index(path, next(csv.reader([_decode(first, path, 1)], delimiter=_delimiter(path))), column)
    if kind == "json" and first is not None:
        record = _record(first, path, 1)
        if "words" in record:
            return "tagged"
        if column not in record:
            raise ValueError(f'{path}: a record has "words" or {column!r}, the first has {", ".join(record)}: --column')
    return kind


def read_pieces(paths: Sequence[str | Path], column: str, size: int) -> Iterator[Piece]:
    """Pieces of `size` lines (fewer at the end of a file), in the order of the files."""
    for path in map(str, paths):
        kind = kind_of(path, column)
        with open_lines(path) as (raw, file):
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
    """The captions of an untagged piece, without empty ones. ValueError names the line that cannot be read."""
    texts = []
    for number, line in enumerate(piece.lines, piece.number):
        if piece.kind == "json":
            text = _record(line, piece.path, number).get(piece.column) if line.strip() else ""
            if not isinstance(text, str):
                raise ValueError(f"{piece.path}, line {number}: {piece.column!r} is not text: {str(text)[:80]}")
        else:
            text = _decode(line, piece.path, number)
        texts.append(text.strip())
    return [text for text in texts if text]


def piece_words(piece: Piece) -> Iterator[tuple[int, list]]:
    """(line number, [[word, part of speech], ...]) of a tagged piece, unchecked."""
    for number, line in enumerate(piece.lines, piece.number):
        if line.strip():
            record = _record(line, piece.path, number)
            if not isinstance(record.get("words"), list):
                raise ValueError(f'{piece.path}, line {number}: not a tagged caption: expected "words" as in the first')
            yield number, record["words"]


def _suffix(path: str | Path) -> str:
    return Path(str(path).lower().removesuffix(".gz")).suffix


def _delimiter(path: str | Path) -> str:
    return "\t" if _suffix(path) == ".tsv" else ","


def _decode(line: bytes, path: str | Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, line {number} is not UTF-8: {error}") from error


def _record(line: bytes, path: str | Path, number: int) -> dict:
    try:
        record = json.loads(_decode(line, path, number))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number} is not a JSON record: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}, line {number}: expected a JSON object, got {type(record).__name__}")
    return record


def _column_index(path: str | Path, names: list[str], column: str) -> int:
    if column not in names:
        raise ValueError(f"{path} has no column {column!r} but {', '.join(names)}: give one of them as --column")
    return names.index(column)


def _table_column(file: BinaryIO, path: str, column: str) -> Iterator[bytes]:
    """The cells of one column, each of which may span several lines of the file."""
    rows = csv.reader(codecs.iterdecode(file, "utf-8-sig"), delimiter=_delimiter(path))
    try:
        names = next(rows, None)
        if names is None:
            return
        index = _column_index(path, names, column)
        for row in rows:
            if row and len(row) != len(names):
                raise ValueError(f"{len(row)} cells, but the first row has {len(names)}")
            yield row[index].encode() if row else b""
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path}, table row near line {rows.line_num}: {error}") from error
