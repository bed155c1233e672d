"""The manifest of a folder of token shards, and the list of its source clips."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sweettok.segments import SegmentLayout

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT = 2
KINDS = ("tokenized", "generated")
MANIFEST, CLIPS = "manifest.json", "clips.txt"
ELSEWHERE = "choose another folder, or delete this one"


@dataclass(frozen=True)
class StoredLayout(SegmentLayout):
    """The layout of a tokenizer's ids as plain data."""

    segment_sizes: tuple[tuple[str, int, int], ...]  # name, number of ids and size of the vocabulary of each segment
    fields: dict[str, Any] = field(default_factory=dict)  # of the tokenizer's own layout class

    def sizes(self) -> tuple[tuple[str, int, int], ...]:
        return self.segment_sizes

    @classmethod
    def of(cls, layout: SegmentLayout) -> StoredLayout:
        return layout if isinstance(layout, cls) else cls(tuple(layout.sizes()), dataclasses.asdict(layout))


class ShardedRows:
    """Rows and shards of a manifest with `num_clips`, `rows_per_shard` and `views`, the rows per source clip."""

    num_clips: int
    rows_per_shard: int
    views: int
    contents: ClassVar[tuple[str, str]]  # what the rows are, and what writes them, for errors

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """The manifest of a folder. Raises FileNotFoundError, or ValueError for a damaged one."""
        path, (what, writer) = Path(folder) / MANIFEST, cls.contents
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: expected a folder of {what}, as {writer} writes")
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            version = about.pop("format")
            if version != FORMAT:
                raise ValueError(f"format {version}, this version reads {FORMAT}")
            return cls.from_dict(about)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"it has no entry {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path} is no manifest of {what}: {reason}") from error

    @classmethod
    def from_dict(cls, about: dict[str, Any]) -> Self:
        """The manifest of `to_dict`, without its format."""
        return cls(**about)

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

    def missing(self, folder: str | Path) -> list[int]:
        """Numbers of the shards that are not in the folder yet."""
        there = {path.name for path in Path(folder).iterdir()}
        return [shard for shard in range(self.num_shards) if shard_name(shard) not in there]

    def to_dict(self) -> dict[str, Any]:
        """The contents of manifest.json."""
        return json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(self)}))


@dataclass(frozen=True)
class TokenManifest(ShardedRows):
    """How the ids of a folder were made. A command that continues a folder must have an equal manifest.

    Args:
        kind: "tokenized" from videos or "generated" by a generator.
        tokenizer_hash: the tokenizer's `ids_hash()`.
        layout: of the ids; the tokenizer's, which becomes a StoredLayout.
        num_clips, clips_hash: of the source clips, see `lists.clips_hash`.
        num_frames, stride, resize, short: of the clips, as in `read_clip`.
        clips_per_video, flips: views of each source clip, in the order of `ClipDataset`.
        given_frames: number of frames that the "given" ids are of, None if there are none.
        num_classes: 0 without labels.
        settings: plain data about what else the ids depend on.
    """

    kind: str
    tokenizer_hash: str
    layout: StoredLayout
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

    contents = "tokens", "sweettok tokenize"

    def __post_init__(self):
        object.__setattr__(self, "layout", StoredLayout.of(self.layout))
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}")
        for name in ("num_clips", "num_frames", "stride", "clips_per_video", "rows_per_shard"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")
        if self.given_frames is not None and not 0 < self.given_frames < self.num_frames:
            allowed = f"1..{self.num_frames - 1} of {self.num_frames} frames"
            raise ValueError(f"given_frames must be {allowed}; got {self.given_frames}")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(f"there are {self.num_classes} classes, but {len(self.class_names)} class names")

    @property
    def views(self) -> int:
        """Rows per source clip."""
        return self.clips_per_video * (2 if self.flips else 1)

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """Type of the ids in the files: the smallest one that holds them all."""
        return np.uint16 if self.layout.vocab_size <= 1 << 16 else np.uint32

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape of a row and type, as safetensors calls it, of each array of a shard."""
        one = (self.layout.length,), f"U{8 * np.dtype(self.dtype).itemsize}"
        return {"ids": one} if self.given_frames is None else {"ids": one, "given": one}

    @classmethod
    def from_dict(cls, about: dict[str, Any]) -> Self:
        names, stored = about.pop("class_names"), about.pop("layout")
        layout = StoredLayout(tuple((n, int(k), int(v)) for n, k, v in stored["segment_sizes"]), stored["fields"])
        return cls(layout=layout, class_names=tuple(names) if names is not None else None, **about)


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.safetensors"


def read_clips(folder: Path, manifest: Any) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Keys and labels of the source clips. Raises ValueError for a file that does not belong to the manifest."""
    path = folder / CLIPS
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != manifest.clips_hash:
        raise ValueError(f"{path} is missing, or not the list of the clips of these tokens: {ELSEWHERE}")
    pairs = [line.split("\t") for line in content.decode().splitlines()]
    labels = tuple(int(label) for _, label in pairs) if manifest.num_classes else None
    wrong = [label for label in labels or () if not 0 <= label < manifest.num_classes]
    if wrong:
        raise ValueError(f"{path} has label {wrong[0]}; this manifest's classes are 0..{manifest.num_classes - 1}")
    return tuple(key for key, _ in pairs), labels
