"""Token shards: what is written is read back, once, whole, by any number of processes; what does not fit is refused."""

import json
import os
import pickle
import stat
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from sweettok.cli.main import main
from sweettok.data import tokens
from sweettok.data.dataset import GlobalBatchSampler, make_loader
from sweettok.data.lists import ClipList, clips_hash
from sweettok.data.manifest import StoredLayout, TokenManifest, shard_name
from sweettok.data.tokens import ShardWriter, TokenDataset, verify
from sweettok.store import InUseError
from sweettok.tokenizer.layout import TokenLayout

LAYOUT = TokenLayout(2, 3, 40000, 20000, 5000, 536)  # 65,536 words, 15 ids
KEYS, LABELS = tuple(f"class {i % 3}/clip_é{i}" for i in range(7)), tuple(i % 3 for i in range(7))
HASH = "ab" * 32


def manifest(keys=KEYS, labels=LABELS, **changes) -> TokenManifest:
    """7 clips of 3 classes, 2 views each, in 4 shards; the last one is shorter."""
    facts = {
        "kind": "tokenized",
        "tokenizer_hash": HASH,
        "layout": LAYOUT,
        "num_clips": len(keys),
        "num_frames": 9,
        "clips_hash": clips_hash(keys, labels),
        "num_classes": 3 if labels else 0,
        "flips": True,
        "rows_per_shard": 4,
    }
    return TokenManifest(**facts | changes)


def made_ids(count: int, layout: TokenLayout = LAYOUT, seed: int = 0) -> torch.Tensor:
    """(count, L) global ids; the first row has the last word of each list, the second one the first."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randint(s.vocab_size, (count, s.length), generator=generator) for s in layout.segments]
    for part, segment in zip(parts, layout.segments, strict=True):
        part[0], part[1] = segment.vocab_size - 1, 0
    return layout.to_global(torch.cat(parts, dim=1))


def write(folder: Path, about: TokenManifest, labels=LABELS, rank: int = 0, world_size: int = 1) -> torch.Tensor:
    """Write what a process has still to write; the ids of all rows."""
    ids, given = made_ids(about.num_rows, about.layout), made_ids(about.num_rows, about.layout, seed=1)
    writer = ShardWriter(folder, about, KEYS, labels, rank, world_size)
    for rows in writer.pending():
        places = slice(rows.start, rows.stop)
        writer.write(rows, ids[places], given[places] if about.given_frames else None)
    return ids


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the locks, which are empty."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


# ------------------------------------------------------------------------------------------------- writing and reading


def test_rows_come_back(tmp_path):
    about = manifest(class_names=("x", "y", "z"), settings={"precision": "no"})
    ids = write(tmp_path, about)
    dataset = TokenDataset(tmp_path)
    assert ids.max() == 65535 and (ids > 32767).sum() > 20
    assert len(dataset) == 14 and dataset.manifest == about
    for row in range(14):
        item = dataset[5, row]
        assert item.keys() == {"ids", "label", "key"}
        assert item["ids"].dtype == torch.int64 and torch.equal(item["ids"], ids[row])
        assert item["key"] == KEYS[row // 2] and item["label"] == LABELS[row // 2]
    assert torch.equal(dataset[13]["ids"], dataset[-1]["ids"])
    with pytest.raises(IndexError):
        dataset[14]
    assert (dataset.layout, dataset.tokenizer_hash, dataset.num_classes) == (StoredLayout.of(LAYOUT), HASH, 3)
    assert TokenLayout(**dataset.layout.fields) == LAYOUT and dataset.layout.segments == LAYOUT.segments
    assert (dataset.class_names, dataset.given_frames) == (("x", "y", "z"), None)


def test_given_frames_and_clips_without_labels(tmp_path):
    about = manifest(labels=None, given_frames=5)
    ids = write(tmp_path, about, labels=None)
    dataset = TokenDataset(tmp_path)
    item = dataset[9]
    assert torch.equal(item["ids"], ids[9]) and torch.equal(item["given"], made_ids(14, seed=1)[9])
    assert item["given"].dtype == torch.int64 and item["label"] == -1
    assert (dataset.given_frames, dataset.num_classes) == (5, 0)


@pytest.mark.parametrize(("verbs", "bytes_per_id"), [(536, 2), (537, 4)])
def test_bytes_of_an_id(tmp_path, verbs, bytes_per_id):
    about = manifest(layout=replace(LAYOUT, verbs=verbs))
    ids = write(tmp_path, about)
    stored = load_file(tmp_path / shard_name(0))["ids"]
    assert stored.dtype.itemsize == bytes_per_id and stored.dtype.kind == "u"
    assert (tmp_path / shard_name(0)).stat().st_size < 4 * 15 * bytes_per_id + 240
    assert torch.equal(TokenDataset(tmp_path)[0]["ids"], ids[0])


def test_files_are_for_everyone_and_name_the_clips(tmp_path):
    write(tmp_path, manifest())
    mask = os.umask(0)
    os.umask(mask)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask for path in tmp_path.iterdir())
    lines = (tmp_path / "clips.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [f"{key}\t{label}" for key, label in zip(KEYS, LABELS, strict=True)]


@pytest.mark.parametrize("labels", [LABELS, None])
def test_clips_have_the_hash_of_their_list(labels):
    clips = ClipList(tuple(map(Path, KEYS)), labels, None, KEYS)
    assert clips_hash(KEYS, labels) == clips.hash


def test_shards_by_hand():
    about = manifest(clips_per_video=3)
    assert (about.views, about.num_rows, about.num_shards) == (6, 42, 11)
    assert [about.rows(shard) for shard in (0, 9, 10)] == [range(4), range(36, 40), range(40, 42)]


# ------------------------------------------------------------------------------------------------- several processes


def test_any_number_of_processes_writes_the_same_bytes(tmp_path):
    about = manifest(given_frames=5)
    write(tmp_path / "one", about)
    for rank in range(3):
        write(tmp_path / "three", about, rank=rank, world_size=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_going_on_writes_only_what_is_missing(tmp_path):
    about = manifest()
    write(tmp_path / "whole", about)
    write(tmp_path / "parts", about, rank=1, world_size=3)
    assert contents(tmp_path / "parts").keys() == {"manifest.json", "clips.txt", shard_name(1)}
    shares = [ShardWriter(tmp_path / "parts", about, KEYS, LABELS, rank, 2).pending() for rank in range(2)]
    assert shares == [[range(0, 4), range(8, 12)], [range(12, 14)]]
    kept = (tmp_path / "parts" / shard_name(1)).stat().st_mtime_ns
    for rank in range(2):
        write(tmp_path / "parts", about, rank=rank, world_size=2)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert (tmp_path / "parts" / shard_name(1)).stat().st_mtime_ns == kept
    assert ShardWriter(tmp_path / "parts", about, KEYS, LABELS).pending() == []


def test_nothing_half_written_is_seen(tmp_path, monkeypatch):
    about = manifest()
    writer = ShardWriter(tmp_path, about, KEYS, LABELS)
    ids = made_ids(14)

    def killed(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.write(range(4), ids[:4])
    assert contents(tmp_path).keys() == {"manifest.json", "clips.txt"} and writer.pending()[0] == range(4)
    writer.close()
    left = tmp_path / ".shard-00000.4711.partial.safetensors"  # a killed process cannot even clear away
    left.write_bytes(b"half")
    ShardWriter(tmp_path, about, KEYS, LABELS, rank=1, world_size=2)
    assert left.exists()
    ShardWriter(tmp_path, about, KEYS, LABELS, rank=0, world_size=2)
    assert not left.exists()


WRITE = """
import sys
from test_data_tokens import *
writer = ShardWriter(sys.argv[1], manifest(), KEYS, LABELS, int(sys.argv[2]), 2)
print("writes", flush=True)
input()
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_folder_in_use_is_left_alone(tmp_path, monkeypatch, rank):
    """Else the second command would delete what the first one is about to rename."""
    ShardWriter(tmp_path, manifest(), KEYS, LABELS)
    command = [sys.executable, "-c", WRITE, str(tmp_path), str(rank)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=Path(__file__).parent, **pipes) as other:
        assert other.stdout.readline() == "writes\n"
        aside = tmp_path / ".shard-00000.0123.partial.safetensors"
        aside.write_bytes(b"half")
        monkeypatch.setattr(tokens, "WAIT", 0.1)
        with pytest.raises(InUseError, match="is in use: .* wait until the other command ends, or choose another"):
            ShardWriter(tmp_path, manifest(), KEYS, LABELS)
        assert aside.exists()
        other.kill()
        other.wait()
        ShardWriter(tmp_path, manifest(), KEYS, LABELS)
        assert not aside.exists()


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"tokenizer_hash": "cd" * 32}, f"tokenizer_hash {HASH} instead of {'cd' * 32}:"),
        ({"stride": 2, "short": "repeat"}, "stride 1 instead of 2, short black instead of repeat"),
        ({"layout": replace(LAYOUT, nouns=7)}, "layout"),
        ({"given_frames": 5}, "given_frames None instead of 5"),
        ({"rows_per_shard": 5}, "rows_per_shard 4 instead of 5"),
        ({"class_names": ("x", "y", "z")}, "class_names None instead of"),
        ({"settings": {"seed": 1}}, "settings {} instead of {'seed': 1}"),
    ],
)
def test_another_manifest_is_refused(tmp_path, change, text):
    write(tmp_path, manifest())
    before = contents(tmp_path)
    with pytest.raises(ValueError) as refused:
        ShardWriter(tmp_path, manifest(**change), KEYS, LABELS)
    assert text in str(refused.value) and str(tmp_path) in str(refused.value)
    assert contents(tmp_path) == before


def test_other_clips_are_refused(tmp_path):
    others = KEYS[::-1]
    write(tmp_path, manifest())
    with pytest.raises(ValueError, match="clips_hash"):
        ShardWriter(tmp_path, manifest(keys=others), others, LABELS)
    with pytest.raises(ValueError, match="these 7 clips are not the 7 of the manifest"):
        ShardWriter(tmp_path / "new", manifest(), others, LABELS)


def test_labels_beyond_the_classes_are_refused(tmp_path):
    """Training does not look at them again, which would wait for the device."""
    write(tmp_path, manifest())
    path = tmp_path / "manifest.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "num_classes": max(LABELS), "class_names": None}))
    with pytest.raises(ValueError, match=f"has label {max(LABELS)}; this manifest's classes are 0..{max(LABELS) - 1}"):
        TokenDataset(tmp_path)


def test_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / "clips.txt").write_text("mine\n")
    with pytest.raises(ValueError, match="clips.txt is missing, or not the list of the clips of these tokens"):
        ShardWriter(tmp_path, manifest(), KEYS, LABELS)
    assert contents(tmp_path) == {"clips.txt": b"mine\n"}
    (tmp_path / "clips.txt").unlink()
    (tmp_path / shard_name(0)).write_bytes(b"?")
    with pytest.raises(ValueError, match="holds shards, but no manifest.json"):
        ShardWriter(tmp_path, manifest(), KEYS, LABELS)


@pytest.mark.parametrize(
    ("rows", "ids", "given", "text"),
    [
        (range(4), made_ids(14)[:3], None, "4 rows need as many ids, got 3"),
        (range(2, 6), made_ids(14)[2:6], None, "not the rows of a shard"),
        (range(12, 16), made_ids(16)[12:], None, "not the rows of a shard"),
        (range(4), made_ids(14)[:4].flip(1), None, "is no adjective"),
        (range(4), made_ids(14)[:4].float(), None, "ids must be integers"),
        (range(4), made_ids(14)[:4], made_ids(14)[:4], "go with given_frames; that is None"),
    ],
)
def test_ids_that_do_not_fit_are_not_written(tmp_path, rows, ids, given, text):
    writer = ShardWriter(tmp_path, manifest(), KEYS, LABELS)
    with pytest.raises(ValueError, match=text):
        writer.write(rows, ids, given)
    assert len(writer.pending()) == 4


def test_arguments_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="given_frames; that is 5"):
        ShardWriter(tmp_path, manifest(given_frames=5), KEYS, LABELS).write(range(4), made_ids(4))
    with pytest.raises(ValueError, match="3 classes, but there are no labels"):
        ShardWriter(tmp_path, manifest(), KEYS)
    with pytest.raises(ValueError, match="labels must be 0..1, got 2"):
        ShardWriter(tmp_path, manifest(num_classes=2), KEYS, LABELS)
    with pytest.raises(ValueError, match="rank must be 0..1"):
        ShardWriter(tmp_path, manifest(), KEYS, LABELS, 2, 2)
    with pytest.raises(ValueError, match="one line without tabs"):
        ShardWriter(tmp_path, manifest(), ("a\tb", *KEYS[1:]), LABELS)
    for change, text in (
        ({"kind": "found"}, "kind must be one of"),
        ({"clips_per_video": 0}, "clips_per_video must be a whole number of at least 1"),
        ({"given_frames": 9}, "given_frames must be 1..8"),
        ({"class_names": ("x",)}, "3 classes, but 1 class names"),
    ):
        with pytest.raises(ValueError, match=text):
            manifest(**change)


def test_incomplete_and_foreign_folders_are_not_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no .*manifest.json: expected a folder of tokens"):
        TokenDataset(tmp_path / "nowhere")
    write(tmp_path, manifest(), rank=1, world_size=3)
    with pytest.raises(ValueError, match="3 of 4 shards are missing: run the command that writes it again"):
        TokenDataset(tmp_path)
    write(tmp_path, manifest())
    TokenDataset(tmp_path)
    (tmp_path / "clips.txt").write_text("")
    with pytest.raises(ValueError, match="clips.txt"):
        TokenDataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda about: {**about, "format": 1}, "format 1, this version reads 2"),
        (lambda about: {**about, "colour": 1}, "colour"),
        (lambda about: {name: about[name] for name in about if name != "layout"}, "layout"),
        (lambda about: {**about, "layout": {"words": 3}}, "segment_sizes"),
        (lambda about: [about], "is no manifest of tokens"),
    ],
)
def test_manifests_are_read_strictly(tmp_path, change, text):
    write(tmp_path, manifest())
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=text) as refused:
        TokenDataset(tmp_path)
    assert str(path) in str(refused.value)


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def rewritten(**arrays):
    return lambda path: save_file({name: np.asarray(array) for name, array in arrays.items()}, path)


@pytest.mark.parametrize(
    "damage",
    [
        shortened,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\0" * 500),
        rewritten(ids=made_ids(3).numpy().astype(np.uint16)),
        rewritten(ids=made_ids(4).numpy().astype(np.uint32)),
        rewritten(ids=np.zeros((4, 15), np.uint16)),
        rewritten(codes=made_ids(4).numpy().astype(np.uint16)),
    ],
    ids=["truncated", "empty", "zeros", "rows", "type", "words", "name"],
)
def test_damaged_shards_are_named(tmp_path, damage):
    write(tmp_path, manifest())
    dataset = TokenDataset(tmp_path)
    damage(tmp_path / shard_name(1))
    dataset[3]
    with pytest.raises(ValueError, match=r"shard-00001.safetensors is damaged .*delete it and run the command"):
        dataset[4]


def test_sizes_of_shards_are_compared_when_a_folder_is_opened(tmp_path):
    write(tmp_path, manifest())
    shortened(tmp_path / shard_name(3))
    message = f"{shard_name(3)} is damaged .* again; sweettok data verify {tmp_path} checks all shards$"
    with pytest.raises(ValueError, match=message):
        TokenDataset(tmp_path)


def swapped(path: Path) -> None:
    path.write_bytes(path.with_name(shard_name(0)).read_bytes())


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [shortened, flipped, swapped, rewritten(ids=made_ids(4).numpy().astype(np.uint16))])
def test_verification_finds_damaged_shards(tmp_path, damage):
    write(tmp_path, manifest(given_frames=None))
    assert verify(tmp_path) == []
    damage(tmp_path / shard_name(2))
    (found,) = verify(tmp_path)
    assert found.startswith(f"{tmp_path / shard_name(2)} is damaged (")
    assert len(verify(tmp_path, content=False)) == (damage is shortened)
    if damage is shortened:  # not taken for written
        with pytest.raises(ValueError, match="is damaged .*: delete the shard"):
            write(tmp_path, manifest(given_frames=None))
    (tmp_path / shard_name(2)).unlink()
    assert verify(tmp_path) == []  # what is missing can be written


def test_another_tokenizer_is_refused(tmp_path):
    write(tmp_path, manifest())
    dataset = TokenDataset(tmp_path)
    dataset.check_tokenizer(HASH)
    with pytest.raises(ValueError, match="of the tokenizer abababababab, not of cdcdcdcdcdcd: give that tokenizer"):
        dataset.check_tokenizer("cd" * 32)


# ------------------------------------------------------------------------------------------------------- in training


@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_has_each_row_once_for_any_number_of_processes(tmp_path, workers):
    """14 rows in global batches of 4: 7 batches are two epochs."""
    ids = write(tmp_path, manifest())
    dataset = TokenDataset(tmp_path)
    row_of = {tuple(row): number for number, row in enumerate(ids.tolist())}

    def stream(world_size):
        loaders = [
            iter(make_loader(dataset, GlobalBatchSampler(14, 4, rank, world_size, 2, seed=3), workers))
            for rank in range(world_size)
        ]
        rows = []
        for _ in range(7):
            for loader in loaders:
                for batch in islice(loader, 2 // world_size):
                    assert batch["ids"].shape == (2, 15) and batch["ids"].dtype == torch.int64
                    found = [row_of[tuple(row)] for row in batch["ids"].tolist()]
                    assert batch["label"].tolist() == [LABELS[row // 2] for row in found]
                    assert batch["key"] == [KEYS[row // 2] for row in found]
                    rows += found
        return rows

    rows = stream(1)
    assert sorted(rows[:14]) == sorted(rows[14:]) == list(range(14))
    assert rows[:14] != rows[14:] and rows[:14] != list(range(14))
    assert stream(2) == rows


def test_pickled_after_reading(tmp_path):
    ids = write(tmp_path, manifest())
    dataset = TokenDataset(tmp_path)
    dataset[3]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3]["ids"], ids[3])


def test_reading_a_row_does_not_load_its_shard(tmp_path):
    """A sparse file of 200 MB, in which three rows are filled in."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("the system does not report how much memory is in use")

    def resident() -> int:
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmRSS"))

    layout = TokenLayout()
    rows = 200_000_000 // (2 * layout.length)
    about = manifest(KEYS[:1], None, layout=layout, clips_per_video=rows, flips=False, rows_per_shard=rows)
    ShardWriter(tmp_path, about, KEYS[:1])
    size = 2 * rows * layout.length
    text = {"ids": {"dtype": "U16", "shape": [rows, layout.length], "data_offsets": [0, size]}}
    header = json.dumps(text).encode().ljust(96)
    ids, asked = made_ids(3, layout), (0, rows // 2, rows - 1)
    with open(tmp_path / shard_name(0), "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for row, values in zip(asked, ids.numpy().astype(np.uint16), strict=True):
            file.seek(8 + len(header) + 2 * row * layout.length)
            file.write(values.tobytes())
    dataset = TokenDataset(tmp_path)
    before = resident()
    assert all(torch.equal(dataset[row]["ids"], ids[number]) for number, row in enumerate(asked))
    assert resident() - before < 40_000_000


# ------------------------------------------------------------------------------------------------------- command line


def test_the_command_shows_what_a_folder_holds(tmp_path, capsys):
    about = manifest(given_frames=5, settings={"precision": "bf16"})
    write(tmp_path, about, rank=1, world_size=2)
    assert main(["data", "tokens", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    for part in (
        "tokenized with tokenizer abababababab",
        "14 rows: 7 clips x 1, each also mirrored; 3 classes",
        "15 ids a row",
        "first 5 frames",
        "4 of 40000 (adjective)",
        "9 frames, stride 1, stretch, short black",
        '"bf16"',
        "2 of 4 shards are written",
    ):
        assert part in text
    write(tmp_path, about)
    assert main(["data", "tokens", str(tmp_path)]) == 0
    assert "4 of 4 shards are written" in capsys.readouterr().out
    assert main(["data", "tokens", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_commands_find_damaged_shards(tmp_path, capsys):
    write(tmp_path, manifest())
    assert main(["data", "verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: 4 shards, 0 missing, 0 damaged\n"
    shortened(tmp_path / shard_name(1))
    flipped(tmp_path / shard_name(2))
    (tmp_path / shard_name(3)).unlink()
    assert main(["data", "tokens", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "2 of 4 shards are written" in out and err.startswith(f"error: {tmp_path / shard_name(1)} is damaged")
    assert main(["data", "verify", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "4 shards, 1 missing, 2 damaged" in out and err.count("error: ") == err.count("\n") == 2
