"""The tokenize command: shards hold what the tokenizer says of each clip, however the work was split or broken off."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from sweettok.cli.main import main
from sweettok.data.dataset import ClipDataset
from sweettok.data.lists import load_clips
from sweettok.data.manifest import StoredLayout, shard_name
from sweettok.data.reader import read_clip
from sweettok.data.tokens import TokenDataset
from sweettok.data.writer import write_video
from sweettok.eval.protocol import PRESETS
from sweettok.inference import tokenize
from sweettok.tokenizer.model import SweetTok

ROOT = Path(__file__).resolve().parent.parent
FRAMES, SIZE = 9, (16, 16)
VIEWS = ("--clips-per-video", "2", "--flips", "--given-frames", "5")


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A tokenizer, and five videos of 7 to 19 frames, the first of them too short, with a list and class names."""
    folder = tmp_path_factory.mktemp("work")
    tiny.tokenizer().save_pretrained(folder / "tokenizer")
    tiny.proxy().save_pretrained(folder / "proxy")
    for number in range(5):
        count = 7 + 3 * number
        frames = torch.cat([tiny.clip(10 * number + part, num_frames=9)[0] for part in range(3)], dim=1)[:, :count]
        write_video(folder / f"{number}.mkv", ((frames + 0.5) * 255).to(torch.uint8), 10, lossless=True)
    (folder / "list.txt").write_text("".join(f"{number}.mkv\t{number % 2 + 1}\n" for number in range(5)))
    (folder / "plain.txt").write_text("".join(f"{number}.mkv\n" for number in range(5)))
    (folder / "classes.txt").write_text("rising\nfalling\n")
    return folder


def arguments(work: Path, out: Path, *more: str, data: str = "list.txt") -> list[str]:
    return [
        "tokenize",
        "--checkpoint",
        str(work / "tokenizer"),
        "--data",
        str(work / data),
        "--out",
        str(out),
        "--rows-per-shard",
        "3",
        "--batch-size",
        "2",
        "--workers",
        "0",
        *more,
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


@pytest.fixture(scope="module")
def whole(work) -> Path:
    """All views with given frames, written by one process at once: 20 rows in 7 shards."""
    assert main(arguments(work, work / "whole", *VIEWS)) == 0
    return work / "whole"


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Sizes of the batches that are encoded from here on."""
    sizes, original = [], tokenize.encode

    def counted(tokenizer, video, *rest):
        sizes.append(len(video))
        return original(tokenizer, video, *rest)

    monkeypatch.setattr(tokenize, "encode", counted)
    return sizes


# -------------------------------------------------------------------------------------------------------- what is there


def test_ids_are_those_of_encode(work, whole):
    tokenizer, dataset = SweetTok.from_pretrained(work / "tokenizer"), TokenDataset(whole)
    assert len(dataset) == 20
    for row in range(20):
        number, part, mirrored = row // 4, row // 2 % 2, row % 2
        spare = max(0, 7 + 3 * number - FRAMES)
        video = read_clip(work / f"{number}.mkv", FRAMES, SIZE, start=spare * part)[None]
        video = video.flip(4) if mirrored else video
        assert torch.equal(dataset[row]["ids"], tokenizer.encode(video).ids[0])
        assert torch.equal(dataset[row]["given"], tokenizer.encode(video[:, :, :5]).ids[0])
        assert (dataset[row]["key"], dataset[row]["label"]) == (str(number), number % 2)
    assert len({tuple(dataset[row]["ids"].tolist()) for row in range(4, 20)}) == 16
    dataset.check_tokenizer(tokenizer.ids_hash())


def test_one_clip_of_a_video_is_that_of_evaluation(work, tmp_path):
    assert main(arguments(work, tmp_path / "out", "--classes", str(work / "classes.txt"), "--short", "black")) == 0
    dataset, clips = TokenDataset(tmp_path / "out"), load_clips(work / "list.txt")
    names = ("position", "stride", "resize", "short")
    protocol = {name: getattr(PRESETS["sweettok-rfvd-ucf101"], name) for name in names}
    videos = ClipDataset(clips, FRAMES, SIZE, **protocol)
    tokenizer = tiny.tokenizer()
    assert len(dataset) == 5 and dataset[0].keys() == {"ids", "label", "key"}
    for row in range(5):
        assert torch.equal(dataset[row]["ids"], tokenizer.encode(videos[row]["video"][None]).ids[0])


def test_the_manifest_tells_how(work, tmp_path):
    more = ("--classes", str(work / "classes.txt"), "--stride", "2", "--resize", "crop", "--short", "repeat")
    assert main(arguments(work, tmp_path / "out", *more, "--limit", "3", "--precision", "bf16")) == 0
    dataset, clips = TokenDataset(tmp_path / "out"), load_clips(work / "list.txt")
    about = dataset.manifest
    assert (about.kind, about.tokenizer_hash, about.layout) == (
        "tokenized",
        tiny.tokenizer().ids_hash(),
        StoredLayout.of(tiny.tokenizer().layout),
    )
    assert (about.num_clips, about.clips_hash) == (3, clips.subset(range(3)).hash)
    assert (about.num_frames, about.stride, about.resize, about.short) == (9, 2, "crop", "repeat")
    assert (about.num_classes, about.class_names) == (2, ("rising", "falling"))
    assert about.settings == {"precision": "bf16"}
    with torch.autocast("cpu", torch.bfloat16):
        for row in range(3):
            video = read_clip(work / f"{row}.mkv", FRAMES, SIZE, "even", 2, "crop", "repeat")[None]
            assert torch.equal(dataset[row]["ids"], tiny.tokenizer().encode(video).ids[0])


@pytest.mark.parametrize(("no", "bf16", "faster"), [(2.0, 1.0, "bf16"), (1.0, 2.0, "no")])
def test_the_faster_precision_is_chosen_and_kept(work, tmp_path, monkeypatch, capsys, no, bf16, faster):
    clock = [0.0]
    cost = {"no": no, "bf16": bf16}
    plain = tokenize.encode

    def encode(tokenizer, video, given_frames, precision):
        clock[0] += cost[precision]
        return plain(tokenizer, video, given_frames, precision)

    monkeypatch.setattr(tokenize, "encode", encode)
    monkeypatch.setattr(tokenize, "perf_counter", lambda: clock[0])
    command = arguments(work, tmp_path / "out", "--limit", "2", "--precision", "auto")
    for _ in range(2):
        assert main(command) == 0
        assert f"1 shards, {faster}\n" in capsys.readouterr().out
        assert TokenDataset(tmp_path / "out").manifest.settings == {"precision": faster}
        cost = {"no": bf16, "bf16": no}  # another machine: a folder that was begun keeps its precision


@pytest.mark.parametrize(
    ("data", "more", "count"),
    [("list.txt", (), 2), ("list.txt", ("--limit", "1"), 2), ("list.txt", ("--classes", "7"), 7), ("plain.txt", (), 0)],
)
def test_number_of_classes(work, tmp_path, data, more, count):
    assert main(arguments(work, tmp_path / "out", *more, data=data)) == 0
    dataset = TokenDataset(tmp_path / "out")
    assert dataset.num_classes == count and dataset.class_names is None
    assert dataset[0]["label"] == (0 if count else -1)


def test_class_folders(work, tmp_path):
    for number, name in enumerate(("b", "a", "c")):
        (tmp_path / "videos" / name).mkdir(parents=True)
        os.link(work / f"{number}.mkv", tmp_path / "videos" / name / "v.mkv")
    assert main([*arguments(work, tmp_path / "out"), "--data", str(tmp_path / "videos")]) == 0
    dataset = TokenDataset(tmp_path / "out")
    assert dataset.class_names == ("a", "b", "c")
    assert [(dataset[row]["key"], dataset[row]["label"]) for row in range(3)] == [("a/v", 0), ("b/v", 1), ("c/v", 2)]


def test_stage_2_decodes_what_stage_1_wrote(whole):
    dataset, later = TokenDataset(whole), tiny.tokenizer()
    for parameter in later.decoder.parameters():
        torch.nn.init.zeros_(parameter)
    dataset.check_tokenizer(later.ids_hash())
    with pytest.raises(ValueError, match="give that tokenizer"):
        dataset.check_tokenizer(tiny.tokenizer(seed=1).ids_hash())


# ------------------------------------------------------------------------------------- split, broken off and continued


def test_two_processes_write_the_same_bytes(work, whole, tmp_path):
    command = ["bash", str(ROOT / "scripts" / "launch.sh"), "-m", "sweettok"]
    environment = {**os.environ, "NUM_PROCESSES": "2", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["VIRTUAL_ENV"] = sys.prefix
    command += arguments(work, tmp_path / "out", *VIEWS, "--workers", "1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{tmp_path / 'out'}: 20 clips, 7 shards") == 1
    assert contents(tmp_path / "out") == contents(whole)


def test_workers_and_batches_change_nothing(work, whole, tmp_path):
    assert main(arguments(work, tmp_path / "out", *VIEWS, "--workers", "2", "--batch-size", "3")) == 0
    assert contents(tmp_path / "out") == contents(whole)


def test_an_interrupted_run_goes_on_where_it_stopped(work, whole, tmp_path, monkeypatch, encoded):
    counted = tokenize.encode

    def interrupted(*arguments):
        if len(encoded) == 5:  # in the middle of the third shard
            raise KeyboardInterrupt
        return counted(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tokenize, "encode", interrupted)
        assert main(arguments(work, tmp_path / "out", *VIEWS)) == 130
    assert encoded == [2, 1, 2, 1, 2]
    assert contents(tmp_path / "out").keys() == {"manifest.json", "clips.txt", shard_name(0), shard_name(1)}
    encoded.clear()
    assert main(arguments(work, tmp_path / "out", *VIEWS)) == 0
    assert encoded == [2, 1, 2, 1, 2, 1, 2, 1, 2]
    assert contents(tmp_path / "out") == contents(whole)


def test_only_missing_shards_are_encoded(work, tmp_path, encoded, capsys):
    out = tmp_path / "out"
    assert main(arguments(work, out, *VIEWS)) == 0
    before = contents(out)
    (out / shard_name(6)).unlink()
    encoded.clear()
    assert main(arguments(work, out, *VIEWS)) == 0
    assert encoded == [2] and contents(out) == before
    encoded.clear()
    assert main(arguments(work, out, *VIEWS)) == 0
    assert not encoded and contents(out) == before


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("more", "wording"),
    [
        (("--checkpoint", "{work}/nowhere"), "nowhere: give one written by save_pretrained"),
        (("--checkpoint", "{work}/proxy"), "expected 'SweetTok'"),
        (("--data", "{work}/nowhere.txt"), "no list file or folder of clips at"),
        (("--data", "{work}/empty.txt"), "no clips in it"),
        (("--data", "{work}/bad.txt"), "bad.mkv: PyAV cannot open it"),
        (("--short", "error"), "0.mkv: 7 frames are too few for 9 at stride 1 (sweettok data scan"),
        (("--short", "error", "--workers", "1"), "0.mkv: 7 frames are too few for 9 at stride 1 (sweettok"),
        (("--classes", "{work}/nowhere.txt"), "nowhere.txt"),
        (("--data", "{work}/plain.txt", "--classes", "2"), "plain.txt has no labels: leave --classes out"),
        (("--given-frames", "4"), "4 frames do not fit: 1 + a multiple of 4 fits (1 or 5)"),
        (("--given-frames", "1"), "at least 5 frames are needed"),
        (("--given-frames", "9"), "given_frames must be less than the 9 of a clip, got 9"),
        (("--batch-size", "0"), "--batch-size: expected a whole number of at least 1, got '0'"),
        (("--workers", "-1"), "--workers: expected a whole number of at least 0, got '-1'"),
        (("--limit", "0"), "--limit: expected a whole number of at least 1, got '0'"),
        (("--clips-per-video", "0"), "--clips-per-video: expected a whole number of at least 1, got '0'"),
        (("--rows-per-shard", "0"), "--rows-per-shard: expected a whole number of at least 1, got '0'"),
        (("--stride", "0"), "--stride: expected a whole number of at least 1, got '0'"),
    ],
)
def test_mistakes_are_reported_in_one_line(work, tmp_path, capsys, more, wording):
    (work / "empty.txt").touch()
    (work / "bad.mkv").write_bytes(b"not a video" * 30)
    (work / "bad.txt").write_text("bad.mkv\n")
    assert main(arguments(work, tmp_path / "out", *(part.format(work=work) for part in more))) == 2
    message = capsys.readouterr().err.splitlines()[-1]  # after the progress bar, where it had begun
    assert message.startswith("error: ") and wording in message
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("shard-*"))


def test_labels_out_of_range_are_named(work, tmp_path, capsys):
    assert main(arguments(work, tmp_path / "out", "--classes", "1")) == 2
    assert "error: labels must be 1..1: " in capsys.readouterr().err


def test_a_folder_of_other_tokens_is_refused(work, whole, capsys):
    before = contents(whole)
    assert main(arguments(work, whole, *VIEWS, "--stride", "2")) == 2
    wording = f"error: {whole} holds tokens with stride 1 instead of 2: choose another folder, or delete this one\n"
    assert capsys.readouterr().err == wording
    assert contents(whole) == before


def test_the_manifest_is_plain_json(whole):
    assert json.loads((whole / "manifest.json").read_text(encoding="utf-8"))["given_frames"] == 5
