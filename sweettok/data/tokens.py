"""Token shards: ids of clips, written by one or many processes and read in any order.

A folder holds
  manifest.json             how the ids were made, and their layout: `TokenManifest`
  clips.txt                 `key TAB class index from 0` of every source clip, in order; no index without labels
  shard-00000.safetensors   "ids" (rows, L): global ids; with given frames also "given" (rows, L): their ids as a clip
Row r is view r % views of source clip r // views, in shard r // rows_per_shard. The metadata of a shard has a SHA-256
of its ids and position.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor
from torch.utils.data import Dataset

from sweettok.data.lists import clip_lines, clips_hash, some
from sweettok.data.manifest import CLIPS, ELSEWHERE, MANIFEST, TokenManifest, read_clips, shard_name
from sweettok.store import InUseError, remove_asides, take_lock, write_aside

WAIT = 10  # seconds to wait for a lock: worker processes of a killed command may hold it for some seconds


class ShardWriter:
    """Writes the missing shards of a folder, each process its share.

    The folder is locked until `close` or the end of the process. The manifest is written first, and unfinished files
    of killed writers are removed. With several processes, rank 0 must create its writer before the others.

    Args:
        keys, labels: of the source clips, in order; their hash must be the manifest's.

    Raises ValueError for a folder with another manifest, InUseError while another command writes into it.
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
            found = "no labels" if labels is None else "labels"
            raise ValueError(f"the manifest has {manifest.num_classes} classes, but there are {found}")
        broken = [repr(key) for key in keys if "\t" in key or len(key.splitlines()) != 1]
        if broken:
            raise ValueError(f"keys must be one line without tabs{some(broken)}")
        unknown = [label for label in labels or () if not 0 <= label < manifest.num_classes]
        if unknown:
            raise ValueError(f"labels must be 0..{manifest.num_classes - 1}, got {unknown[0]}")
        if len(keys) != manifest.num_clips or clips_hash(keys, labels) != manifest.clips_hash:
            raise ValueError(f"these {len(keys)} clips are not the {manifest.num_clips} of the manifest")
        self.folder, self.manifest, self.rank, self.world_size = Path(folder), manifest, rank, world_size
        self.close = self._lock()
        self._claim(clip_lines(keys, labels))

    def _lock(self) -> Callable[[], None]:
        """Take this rank's lock; rank 0 also checks that the locks of other ranks are free."""
        try:
            release = take_lock(self.folder / f".writer-{self.rank}.lock", WAIT)
            for path in self.folder.glob(".writer-*.lock") if self.rank == 0 else ():
                if path.name != ".writer-0.lock":
                    take_lock(path, WAIT)()
        except InUseError as error:
            raise InUseError(f"{error}: wait until the other command ends, or choose another folder") from None
        return release

    def _claim(self, lines: str) -> None:
        found, mine = self.folder / MANIFEST, self.manifest.to_dict()
        shards = any(self.folder.glob("shard-*.safetensors"))
        if found.is_file() and not shards and self.rank == 0:  # a command that failed before its first shard
            found.unlink()
            (self.folder / CLIPS).unlink(missing_ok=True)
        if found.is_file():
            theirs = type(self.manifest).read(self.folder).to_dict()
            changed = [f"{name} {theirs[name]} instead of {mine[name]}" for name in mine if theirs[name] != mine[name]]
            if changed:
                raise ValueError(f"{self.folder} holds tokens with {', '.join(changed)}: {ELSEWHERE}")
        elif shards:
            raise ValueError(f"{self.folder} holds shards, but no {MANIFEST}: {ELSEWHERE}")
        if self.rank == 0:
            remove_asides(self.folder)
        _write_once(self.folder / CLIPS, lines)
        read_clips(self.folder, self.manifest)
        _write_once(found, json.dumps(mine, indent=1, ensure_ascii=False) + "\n")
        damaged = damaged_shards(self.folder, self.manifest, content=False)
        if damaged:
            raise ValueError(f"{damaged[0]}: delete the shard, and the command that writes it writes it again")

    def pending(self) -> list[range]:
        """Rows of each missing shard of this process."""
        return [self.manifest.rows(s) for s in self.manifest.missing(self.folder) if s % self.world_size == self.rank]

    def write(self, rows: range, ids: Tensor, given: Tensor | None = None) -> None:
        """Write the shard of `rows`, one of `pending`: global ids (rows, L), and those of the given frames.

        Raises ValueError for ids that are not in the vocabulary of their segment.
        """
        manifest = self.manifest
        if (given is not None) != (manifest.given_frames is not None):
            raise ValueError(f"ids of given frames go with given_frames; that is {manifest.given_frames}")
        tensors = {"ids": ids} if given is None else {"ids": ids, "given": given}
        for tensor in tensors.values():
            manifest.layout.check(tensor)
        self.save(rows, {name: tensor.cpu().numpy().astype(manifest.dtype) for name, tensor in tensors.items()})

    def save(self, rows: range, arrays: dict[str, np.ndarray]) -> None:
        """Write the shard of `rows`, with the arrays of the manifest."""
        shard = rows.start // self.manifest.rows_per_shard
        if rows != self.manifest.rows(shard):
            raise ValueError(f"{rows} are not the rows of a shard; those around are {self.manifest.rows(shard)}")
        for name, array in arrays.items():
            if len(array) != len(rows):
                raise ValueError(f"{len(rows)} rows need as many {name}, got {len(array)}")
        with write_aside(self.folder / shard_name(shard)) as aside:
            aside.write_bytes(save(arrays, {"sha256": _digest(self.manifest, shard, arrays)}))


def _digest(manifest: Any, shard: int, arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of a shard's arrays, tokenizer, clips and rows."""
    digest = hashlib.sha256(f"{manifest.tokenizer_hash} {manifest.clips_hash} {manifest.rows(shard)}".encode())
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def open_shard(folder: str | Path, manifest: Any, shard: int) -> tuple[dict[str, Any], str | None]:
    """The arrays of a shard by name, read when indexed, and its SHA-256 or None.

    Raises ValueError for a file that is incomplete or has other shapes or types than the manifest.
    """
    try:
        file = safe_open(Path(folder) / shard_name(shard), framework="numpy")
        slices = {name: file.get_slice(name) for name in manifest.arrays}
    except (SafetensorError, OSError) as error:
        raise _damaged(folder, shard, error) from error
    for name, (shape, dtype) in manifest.arrays.items():
        wanted = [len(manifest.rows(shard)), *shape], dtype
        found = slices[name].get_shape(), slices[name].get_dtype()
        if found != wanted:
            raise _damaged(folder, shard, f"{name} has shape and type {found}, expected {wanted}")
    return slices, (file.metadata() or {}).get("sha256")


def _damaged(folder: str | Path, shard: int, reason: Any) -> ValueError:
    path = Path(folder) / shard_name(shard)
    return ValueError(f"{path} is damaged ({reason}): delete it and run the command that wrote it again")


def verify(folder: str | Path, content: bool = True) -> list[str]:
    """Problems of the shards that are in a folder, one message each; empty if there are none.

    Args:
        content: read all ids and compare their SHA-256; otherwise only sizes, shapes and types are checked.
    """
    manifest = TokenManifest.read(folder)
    read_clips(Path(folder), manifest)
    return damaged_shards(folder, manifest, content)


def damaged_shards(folder: str | Path, manifest: Any, content: bool) -> list[str]:
    """As `verify`, with the manifest that was read."""
    problems, missing = [], set(manifest.missing(folder))
    for shard in range(manifest.num_shards):
        if shard in missing:
            continue
        try:
            slices, digest = open_shard(folder, manifest, shard)
            arrays = {name: rows[:] for name, rows in slices.items()} if content else {}
            if content and _digest(manifest, shard, arrays) != digest:
                raise _damaged(folder, shard, "its ids are not those that were written")
        except ValueError as error:
            problems.append(str(error))
    return problems


class ShardDataset(Dataset):
    """The rows of a folder of shards, mapped into memory and read when indexed.

    Raises FileNotFoundError for a folder without a manifest, ValueError for an incomplete one and for damaged shards.
    When opened, only the sizes, shapes and types of shards are checked; `verify` also compares the content of tokens.
    """

    manifest_class: type[Any]

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest = about = self.manifest_class.read(folder)
        missing = about.missing(folder)
        if missing:
            found = f"{len(missing)} of {about.num_shards} shards are missing"
            raise ValueError(f"{folder}: {found}: run the command that writes it again, it writes what is left")
        self.keys, self.labels = read_clips(self.folder, about)
        damaged = damaged_shards(folder, about, content=False)
        if damaged:
            raise ValueError(f"{damaged[0]}; sweettok data verify {folder} checks all shards")
        self._shards: dict[int, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}  # each process maps its own

    def __len__(self) -> int:
        return self.manifest.num_rows

    def arrays(self, row: int) -> dict[str, np.ndarray]:
        """The arrays of a row by name; negative rows count from the end."""
        shard, place = divmod(range(len(self))[row], self.manifest.rows_per_shard)
        if shard not in self._shards:
            self._shards[shard], _ = open_shard(self.folder, self.manifest, shard)
        return {name: rows[place] for name, rows in self._shards[shard].items()}


class TokenDataset(ShardDataset):
    """The rows of a folder of tokens; see `ShardDataset`.

    An item is {"ids": int64 (L,), "label": int, -1 without labels, "key": str of the source clip}, with given frames
    also "given": int64 (L,). An index may be (epoch, index); the epoch has no effect.
    """

    manifest_class = TokenManifest

    def __init__(self, folder: str | Path):
        super().__init__(folder)
        about: TokenManifest = self.manifest
        self.layout, self.tokenizer_hash, self.given_frames = about.layout, about.tokenizer_hash, about.given_frames
        self.num_classes, self.class_names = about.num_classes, about.class_names

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        row = range(len(self))[item[1] if isinstance(item, tuple) else item]
        clip = row // self.manifest.views
        label = self.labels[clip] if self.labels is not None else -1
        return {**self._read(row), "label": label, "key": self.keys[clip]}

    def _read(self, row: int) -> dict[str, Tensor]:
        tensors = {name: torch.from_numpy(ids.astype(np.int64)) for name, ids in self.arrays(row).items()}
        for ids in tensors.values():
            try:
                self.layout.check(ids[None])
            except ValueError as error:
                raise _damaged(self.folder, row // self.manifest.rows_per_shard, error) from error
        return tensors

    def check_tokenizer(self, ids_hash: str) -> None:
        """Raise ValueError unless the tokenizer with this `ids_hash()` can decode these ids."""
        if ids_hash != self.tokenizer_hash:
            raise ValueError(
                f"the ids in {self.folder} are of the tokenizer {self.tokenizer_hash[:12]}, not of {ids_hash[:12]}: "
                "give that tokenizer (stages 1 and 2 of it have the same ids), or write the tokens with this one"
            )


def _write_once(path: Path, text: str) -> None:
    if not path.is_file():
        with write_aside(path) as aside:
            aside.write_bytes(text.encode())
