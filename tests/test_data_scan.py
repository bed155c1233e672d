"""Scanning lists finds every planted problem, and nothing in a sound list."""

import errno
import json
import os
import signal
import time

import pytest
import tiny
import torch

from sweettok.cli.main import main
from sweettok.data import scan as scanning
from sweettok.data.lists import load_clips, read_entries
from sweettok.data.scan import scan
from sweettok.data.writer import write_png, write_video


def moving(number: int, frames: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (3, frames, 16, 16), dtype=torch.uint8, generator=generator)


@pytest.fixture
def folder(tmp_path):
    """Six sound clips of two classes, in a list; a validation list of two more."""
    names = [f"{'ab'[number % 2]}/v_{'AB'[number % 2]}_g{number + 1:02d}_c01" for number in range(8)]
    for number, name in enumerate(names):
        write_video(tmp_path / f"{name}.mkv", moving(number), 10, lossless=True)
    rows = [f"{name}.mkv\t{number % 2 + 1}\n" for number, name in enumerate(names)]
    (tmp_path / "train.txt").write_text("".join(rows[:6]))
    (tmp_path / "val.txt").write_text("".join(rows[6:]))
    return tmp_path


def plant(folder) -> dict[str, str]:
    """Spoil the training list; returns {path: kind of the planted problem}."""
    (folder / "a" / "broken.mkv").write_bytes((folder / "a" / "v_A_g01_c01.mkv").read_bytes()[:300])
    write_video(folder / "a" / "few.mkv", moving(20, frames=4), 10, lossless=True)
    (folder / "a" / "copy.mkv").write_bytes((folder / "a" / "v_A_g03_c01.mkv").read_bytes())
    (folder / "b" / "copy_of_val.mkv").write_bytes((folder / "b" / "v_B_g08_c01.mkv").read_bytes())
    write_video(folder / "a" / "v_A_g07_c02.mkv", moving(21), 10, lossless=True)
    kinds = {
        "a/broken.mkv": "unreadable",
        "a/few.mkv": "short",
        "a/copy.mkv": "repeated",
        "a/gone.mkv": "missing",
        "b/copy_of_val.mkv": "shared",
        "a/v_A_g07_c02.mkv": "group",
    }
    with (folder / "train.txt").open("a") as file:
        file.writelines(f"{path}\t1\n" for path in kinds)
    return kinds


@pytest.mark.parametrize("workers", [0, 2])
def test_finds_what_was_planted(folder, workers):
    kinds = plant(folder)
    train, val = (read_entries(folder / name)[0] for name in ("train.txt", "val.txt"))
    problems = scan(train, val, frames=5, workers=workers)
    assert {str(p.entry.path.relative_to(folder)): p.kind for p in problems} == kinds
    text = {problem.kind: str(problem) for problem in problems}
    assert "train.txt, line 8: " in text["short"] and "4 of 5" in text["short"]
    assert "v_A_g03_c01.mkv" in text["repeated"] and "v_B_g08_c01.mkv" in text["shared"]


def test_sound_lists_have_no_problems(folder):
    train, val = (read_entries(folder / name)[0] for name in ("train.txt", "val.txt"))
    assert scan(train, val, frames=6) == []
    assert [problem.kind for problem in scan(train, frames=3, stride=3)] == ["short"] * 6


def test_lines_that_repeat(folder):
    (folder / "train.txt").write_text("a/v_A_g01_c01.mkv\t1\na/v_A_g01_c01.mkv\t2\na/gone.mkv\t1\na/gone.mkv\t1\n")
    kinds = [problem.kind for problem in scan(read_entries(folder / "train.txt")[0], frames=5)]
    assert kinds == ["repeated", "missing", "missing", "repeated"]


def fail():
    raise OSError(errno.EIO, os.strerror(errno.EIO))


HARMS = {
    "slow": lambda: time.sleep(1000),
    "fatal": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "unreadable": fail,
}


@pytest.mark.parametrize("kind", HARMS)
def test_files_that_stop_their_reader(folder, monkeypatch, kind):
    """Two of the list and one of the other; all others are read."""
    harmful = {"v_A_g03_c01", "v_B_g04_c01", "v_B_g08_c01"}

    def harming(read):
        return lambda path: HARMS[kind]() if path.stem in harmful else read(path)

    for name in ("count_frames", "digest"):
        monkeypatch.setattr(scanning, name, harming(getattr(scanning, name)))
    train, val = (read_entries(folder / name)[0] for name in ("train.txt", "val.txt"))
    problems = scan(train, val, frames=5, stride=2, workers=2, timeout=2 if kind == "slow" else 60)
    found = {(problem.entry.path.stem, problem.kind) for problem in problems}
    sound = {entry.path.stem for entry in train} - harmful
    assert found == {(stem, kind) for stem in harmful} | {(stem, "short") for stem in sound}
    assert [problem.entry.path.stem for problem in problems][-1] == "v_B_g08_c01"


def test_images(tmp_path):
    write_png(tmp_path / "one.png", moving(0)[:, 0])
    (tmp_path / "two.png").write_bytes(b"no image")
    entries = read_entries(tmp_path)[0]
    assert [problem.kind for problem in scan(entries, frames=1)] == ["unreadable"]
    assert [problem.kind for problem in scan(entries[:1], frames=2)] == ["short"]


def test_command(folder, capsys):
    val = str(folder / "val.txt")
    train = str(folder / "train.txt")
    assert main(["data", "scan", train, "--against", val, "--frames", "5", "--workers", "0"]) == 0
    assert "6 clips, no problems" in capsys.readouterr().out
    kinds = plant(folder)
    clean, report = folder / "clean.txt", folder / "report.json"
    options = ["--against", val, "--frames", "5", "--write-clean", str(clean), "--report", str(report)]
    assert main(["data", "scan", train, *options[:4]]) == 1
    out, err = capsys.readouterr()
    assert err.endswith("error: 6 clips have problems\n") and "(4 of 5 frames)" in out
    assert out.count("broken.mkv") == 1 and "broken.mkv does not decode to its end (" in out
    assert main(["data", "scan", train, *options]) == 0  # the clean list is written
    out = capsys.readouterr().out
    assert "12 clips, 1 missing, 1 unreadable, 1 short, 1 repeated, 1 shared, 1 group" in out
    rows = json.loads(report.read_text())["problems"]
    assert {row["path"].removeprefix(f"{folder}/"): row["kind"] for row in rows} == kinds
    before = (folder / "train.txt").read_text().splitlines()[:6]
    assert clean.read_text().splitlines() == before
    assert load_clips(clean).labels == (0, 1, 0, 1, 0, 1)
    assert main(["data", "scan", str(clean), "--against", val, "--frames", "5", "--workers", "0"]) == 0


def test_clips_for_a_model(folder, capsys):
    """Of 5 frames; without the model, the message says what to do."""
    tiny.proxy(tiny.proxy_config(num_frames=5)).save_pretrained(folder / "proxy")
    command = ["data", "scan", str(folder / "b"), "--workers", "0"]
    assert main(command) == 1
    out, err = capsys.readouterr()
    advice = "4 have fewer than 17 frames: if the model needs fewer, give --checkpoint MODEL or --frames N"
    assert err.endswith(f"error: 4 clips have problems; {advice}\n")
    assert f"{folder}/b/v_B_g02_c01.mkv has fewer frames than a clip (6 of 17 frames)" in out.splitlines()
    assert main([*command, "--checkpoint", str(folder / "proxy")]) == 0
    assert main([*command, "--checkpoint", str(folder / "proxy"), "--stride", "2"]) == 1
    assert "(6 of 9 frames)" in capsys.readouterr().out


def test_command_refuses_wrong_input(folder, tmp_path_factory, capsys):
    elsewhere = str(tmp_path_factory.mktemp("elsewhere") / "clean.txt")
    assert main(["data", "scan", str(folder / "train.txt"), "--write-clean", elsewhere]) == 2
    assert main(["data", "scan", str(folder / "none.txt")]) == 2
    assert "no list file or folder of clips" in capsys.readouterr().err
    for option, text in (
        ("--timeout=0", "argument --timeout: expected a number above 0 and at most 1e+06, got '0'"),
        ("--timeout=nan", "got 'nan'"),
        ("--timeout=1e12", "got '1e12'"),
        ("--frames=0", "argument --frames: expected a whole number of at least 1, got '0'"),
        ("--workers=-1", "argument --workers: expected a whole number of at least 0"),
    ):
        assert main(["data", "scan", str(folder / "train.txt"), option]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and text in error and error.count("\n") == 1
    for option in ("--report", "--write-clean"):
        before = (folder / "train.txt").read_bytes()
        path = str(folder / ("train.txt" if option == "--write-clean" else "a/v_A_g01_c01.mkv"))
        assert main(["data", "scan", str(folder / "train.txt"), option, path]) == 2
        assert (folder / "train.txt").read_bytes() == before and (folder / "a/v_A_g01_c01.mkv").stat().st_size > 300
        assert capsys.readouterr().out == ""  # refused before the files are read
    before = (folder / "val.txt").read_bytes()
    assert main(["data", "scan", str(folder / "train.txt"), "--write-clean", str(folder / "val.txt")]) == 2
    assert "would be replaced" in capsys.readouterr().err and (folder / "val.txt").read_bytes() == before


def test_equal_names_are_not_equal_clips(folder, tmp_path_factory, capsys):
    """Training and validation clips may have the same relative names below their roots."""
    other = tmp_path_factory.mktemp("other")
    write_video(other / "a" / "clip.mkv", moving(30), 10, lossless=True)
    write_video(folder / "a" / "clip.mkv", moving(31), 10, lossless=True)
    train, val = folder / "names.txt", other / "names.txt"
    for path in (train, val):
        path.write_text("a/clip.mkv\t1\n")
    options = ["--against", str(val), "--frames", "5", "--workers", "0"]
    assert main(["data", "scan", str(train), *options, "--write-clean", str(folder / "clean.txt")]) == 0
    assert (folder / "clean.txt").read_text() == train.read_text()
    val.write_text(f"{folder / 'a' / 'clip.mkv'}\n")
    assert main(["data", "scan", str(train), *options]) == 1
    assert "1 clips, 1 shared" in capsys.readouterr().out


def test_labels_out_of_range(folder, capsys):
    lines = [f"a/v_A_g01_c01.mkv\t{10**20}", "b/v_B_g02_c01.mkv\t0", "a/v_A_g03_c01.mkv\t1"]
    (folder / "labels.txt").write_text("\n".join(lines))
    scanned = ["data", "scan", str(folder / "labels.txt"), "--frames", "5", "--workers", "0"]
    assert main(scanned) == 1
    assert "3 clips, 2 label\n" in (out := capsys.readouterr().out) and f"({10**20}, expected 1..1000000)" in out
    assert main([*scanned, "--write-clean", str(folder / "clean.txt")]) == 0
    assert (folder / "clean.txt").read_text() == "a/v_A_g03_c01.mkv\t1\n"
    with pytest.raises(ValueError, match="labels must be 1..1000000"):
        load_clips(folder / "labels.txt")
    (folder / "labels.txt").write_text("\n".join(lines[:2]))
    assert main([*scanned, "--write-clean", str(folder / "none.txt")]) == 2
    assert "every clip has a problem" in capsys.readouterr().err and not (folder / "none.txt").exists()
