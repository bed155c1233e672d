"""Token shards: ids of clips, written once by many processes and read in any order, row by row.

A folder holds
  manifest.json             what the ids mean and how they were made: `TokenManifest`
  clips.txt                 `key TAB class index from 0` of every source clip, in order; no index without labels
  shard-00000.safetensors   rows 0, 1, ...: "ids" (rows, L), global ids; and "given" (rows, L), the ids of the given
  shard-00001.safetensors   frames as a clip of their own, where there are such
Row r is view r % views of source clip r // views, and stands in shard r // rows_per_shard: places follow from numbers.
Every file appears whole or not at all, so a shard that is there is finished.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor
from torch.utils.data import Dataset

from sweettok.data.lists import some
from sweettok.store import write_aside
from sweettok.tokenizer.layout import TokenLayout

FORMAT = 1
KINDS = ("tokenized", "generated")
MANIFEST, CLIPS = "manifest.json", "clips.txt"
_DTYPES = {np.uint16: "U16", np.uint32: "U32"}  # and safetensors' names of them
_ELSEWHERE = "choose another folder, or delete this one"


@dataclass(frozen=True)
class TokenManifest:
    """What the ids of a folder mean, and how they were made.

    kind: "tokenized" from videos or "generated" by a generator. tokenizer_hash: `SweetTok.ids_hash()`. clips_hash: of
    the source clips, by `clips_hash`. num_frames, stride, resize, short: of the clips, as in `read_clip`.
    clips_per_video, flips: views of each source clip, in the order of `ClipDataset`. given_frames: how many frames the
    ids of the given clip stand for. num_classes: 0 without labels. settings: plain data about what else decides the
    ids; who goes on writing must have the same.
    """

    kind: str
    tokenizer_hash: str
    layout: TokenLayout
    num_clips: int
    clips_hash: str
    num_frames: int
    stride: int = 1
    resize: str = "stretch"
    short: str = "black"
    clips_per_video: int = 1
    flips: bool = False
    given_frames: int | None = None
    num_classes: int = 0
    class_names: tuple[str, ...] | None = None
    rows_per_shard: int = 256
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}")
        for name in ("num_clips", "num_frames", "stride", "clips_per_video", "rows_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.given_frames is not None and not 0 < self.given_frames < self.num_frames:
            raise ValueError(f"given_frames must be 1..{self.num_frames - 1} of {self.num_frames} frames; "
                             f"got {self.given_frames}")  # fmt: skip
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(f"there are {self.num_classes} classes, but {len(self.class_names)} names of classes")

    @property
    def views(self) -> int:
        """Rows of each source clip."""
        return self.clips_per_video * (2 if self.flips else 1)

    @property
    def num_rows(self) -> int:
        return self.num_clips * self.views

    @property
    def num_shards(self) -> int:
        return -(-self.num_rows // self.rows_per_shard)

    def rows(self, shard: int) -> range:
        """The rows of a shard; the last one may be shorter."""
        first = shard * self.rows_per_shard
        return range(first, min(first + self.rows_per_shard, self.num_rows))

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The smallest type of the files that holds every id."""
        return np.uint16 if self.layout.vocab_size <= 1 << 16 else np.uint32

    def missing(self, folder: str | Path) -> list[int]:
        """Shards that are not in the folder yet."""
        there = {path.name for path in Path(folder).iterdir()}
        return [shard for shard in range(self.num_shards) if shard_name(shard) not in there]

    def to_dict(self) -> dict[str, Any]:
        """The contents of manifest.json."""
        return json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(self)}))

    @classmethod
    def read(cls, folder: str | Path) -> TokenManifest:
        """The manifest of a folder. FileNotFoundError if there is none, ValueError if it cannot be understood."""
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: expected a folder of tokens, as python -m sweettok.inference writes")
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            version = about.pop("format")
            if version != FORMAT:
                raise ValueError(f"format {version}, this version reads {FORMAT}")
            names = about.pop("class_names")
            names = tuple(names) if names is not None else None
            return cls(layout=TokenLayout(**about.pop("layout")), class_names=names, **about)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no manifest of tokens: {error}") from error


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.safetensors"


def clips_hash(keys: Sequence[str], labels: Sequence[int] | None = None) -> str:
    """SHA-256 of clips.txt; that of `ClipList.hash` for the clips of a list."""
    return hashlib.sha256(_clip_lines(keys, labels).encode()).hexdigest()


def _clip_lines(keys: Sequence[str], labels: Sequence[int] | None) -> str:
    broken = [repr(key) for key in keys if "\t" in key or len(key.splitlines()) != 1]
    if broken:
        raise ValueError(f"keys must be one line without tabs{some(broken)}")
    pairs = zip(keys, labels if labels is not None else ("",) * len(keys), strict=True)
    return "".join(f"{key}\t{label}\n" for key, label in pairs)


class ShardWriter:
    """Writes the shards of a folder: each process its share, and after an interruption only what is missing.

    Creating one claims the folder: its manifest is written before its first shard, and a folder with another manifest
    is refused with a ValueError that names what differs. With several processes, rank 0 must have created its writer
    before any other process creates one; it also clears away what killed writers have left.

    Args:
        keys, labels: of the source clips, in order; their hash is that of the manifest.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: TokenManifest,
        keys: Sequence[str],
        labels: Sequence[int] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be 0..{world_size - 1}, got {rank}")
        if (labels is not None) != (manifest.num_classes > 0):
            told = "no labels" if labels is None else "labels"
            raise ValueError(f"the manifest tells of {manifest.num_classes} classes, but there are {told}")
        unknown = [label for label in labels or () if not 0 <= label < manifest.num_classes]
        if unknown:
            raise ValueError(f"labels must be 0..{manifest.num_classes - 1}, got {unknown[0]}")
        if len(keys) != manifest.num_clips or clips_hash(keys, labels) != manifest.clips_hash:
            raise ValueError(f"these {len(keys)} clips are not the {manifest.num_clips} of the manifest")
        self.folder, self.manifest, self.rank, self.world_size = Path(folder), manifest, rank, world_size
        self._claim(_clip_lines(keys, labels))

    def _claim(self, lines: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        found, mine = self.folder / MANIFEST, self.manifest.to_dict()
        if found.is_file():
            theirs = TokenManifest.read(self.folder).to_dict()
            told = [f"{name} {theirs[name]} instead of {mine[name]}" for name in mine if theirs[name] != mine[name]]
            if told:
                raise ValueError(f"{self.folder} holds tokens with {', '.join(told)}: {_ELSEWHERE}")
        elif any(self.folder.glob("shard-*.safetensors")):
            raise ValueError(f"{self.folder} holds shards, but no {MANIFEST}: {_ELSEWHERE}")
        if self.rank == 0:
            for left in self.folder.glob(".*.partial.*"):
                left.unlink(missing_ok=True)
        _write_once(self.folder / CLIPS, lines)
        _read_clips(self.folder, self.manifest)
        _write_once(found, json.dumps(mine, indent=1, ensure_ascii=False) + "\n")

    def pending(self) -> list[range]:
        """Rows of each shard that this process has still to write."""
        return [self.manifest.rows(s) for s in self.manifest.missing(self.folder) if s % self.world_size == self.rank]

    def write(self, rows: range, ids: Tensor, given: Tensor | None = None) -> None:
        """Write the shard of `rows`, as `pending` names them: global ids (rows, L), and those of the given frames.

        ValueError for ids that are not words of their segment's list.
        """
        manifest = self.manifest
        shard = rows.start // manifest.rows_per_shard
        if rows != manifest.rows(shard):
            raise ValueError(f"{rows} are not the rows of a shard; those around are {manifest.rows(shard)}")
        if (given is not None) != (manifest.given_frames is not None):
            raise ValueError(f"ids of given frames go with given_frames; that is {manifest.given_frames}")
        tensors = {"ids": ids} if given is None else {"ids": ids, "given": given}
        for name, tensor in tensors.items():
            manifest.layout.check(tensor)
            if len(tensor) != len(rows):
                raise ValueError(f"{len(rows)} rows need as many {name}, got {len(tensor)}")
        arrays = {name: tensor.cpu().numpy().astype(manifest.dtype) for name, tensor in tensors.items()}
        with write_aside(self.folder / shard_name(shard)) as aside:
            aside.write_bytes(save(arrays))


class TokenDataset(Dataset):
    """The rows of a folder of tokens, mapped into memory and read when asked for.

    An item is {"ids": int64 (L,), "label": int, -1 without labels, "key": str of the source clip}, and "given": int64
    (L,) where there are given frames. It is addressed by index, or by (epoch, index), which is the same in each epoch.

    Raises FileNotFoundError for a folder that holds no tokens, ValueError for one that is not complete; reading a row
    raises ValueError, naming the file, for a shard that is damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest = TokenManifest.read(folder)
        missing = self.manifest.missing(folder)
        if missing:
            raise ValueError(f"{folder}: {len(missing)} of {self.manifest.num_shards} shards are missing: run the "
                             "command that writes it again, it does what is left")  # fmt: skip
        self.keys, self.labels = _read_clips(self.folder, self.manifest)
        self._shards: dict[int, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}  # each process maps for itself what it reads

    @property
    def layout(self) -> TokenLayout:
        return self.manifest.layout

    @property
    def tokenizer_hash(self) -> str:
        return self.manifest.tokenizer_hash

    @property
    def num_classes(self) -> int:
        return self.manifest.num_classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.manifest.class_names

    @property
    def given_frames(self) -> int | None:
        return self.manifest.given_frames

    def __len__(self) -> int:
        return self.manifest.num_rows

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        row = range(len(self))[item[1] if isinstance(item, tuple) else item]
        shard, place = divmod(row, self.manifest.rows_per_shard)
        clip = row // self.manifest.views
        label = self.labels[clip] if self.labels is not None else -1
        return {**self._read(shard, place), "label": label, "key": self.keys[clip]}

    def _read(self, shard: int, place: int) -> dict[str, Tensor]:
        if shard not in self._shards:
            self._shards[shard] = self._map(shard)
        tensors = {name: torch.from_numpy(rows[place].astype(np.int64)) for name, rows in self._shards[shard].items()}
        for ids in tensors.values():
            try:
                self.layout.check(ids[None])
            except ValueError as error:
                raise self._damaged(shard, error) from error
        return tensors

    def _map(self, shard: int) -> dict[str, Any]:
        """The tensors of a shard, whose rows are read when they are indexed."""
        names = ("ids",) if self.given_frames is None else ("ids", "given")
        wanted = [len(self.manifest.rows(shard)), self.layout.length], _DTYPES[self.manifest.dtype]
        try:
            file = safe_open(self.folder / shard_name(shard), framework="numpy")
            slices = {name: file.get_slice(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise self._damaged(shard, error) from error
        for name, rows in slices.items():
            found = rows.get_shape(), rows.get_dtype()
            if found != wanted:
                raise self._damaged(shard, f"{name} has shape and type {found}, expected {wanted}")
        return slices

    def _damaged(self, shard: int, reason: Any) -> ValueError:
        path = self.folder / shard_name(shard)
        return ValueError(f"{path} is damaged ({reason}): delete it and run the command that wrote it again")

    def check_tokenizer(self, ids_hash: str) -> None:
        """Raise ValueError unless the tokenizer with this `SweetTok.ids_hash()` can decode these ids."""
        if ids_hash != self.tokenizer_hash:
            raise ValueError(
                f"the ids in {self.folder} are of the tokenizer {self.tokenizer_hash[:12]}, not of {ids_hash[:12]}: "
                "give that tokenizer (stage 1 or stage 2 of one encoder do), or write the tokens with this one"
            )


def _read_clips(folder: Path, manifest: TokenManifest) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Keys and labels of the source clips; ValueError unless the file is the manifest's."""
    path = folder / CLIPS
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != manifest.clips_hash:
        raise ValueError(f"{path} is missing, or not the list of the clips of these tokens: {_ELSEWHERE}")
    pairs = [line.split("\t") for line in content.decode().splitlines()]
    labels = tuple(int(label) for _, label in pairs) if manifest.num_classes else None
    wrong = [label for label in labels or () if not 0 <= label < manifest.num_classes]
    if wrong:
        raise ValueError(f"{path} has label {wrong[0]}; this manifest's classes are 0..{manifest.num_classes - 1}")
    return tuple(key for key, _ in pairs), labels


def _write_once(path: Path, text: str) -> None:
    if not path.is_file():
        with write_aside(path) as aside:
            aside.write_bytes(text.encode())
