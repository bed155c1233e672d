"""Evaluation on two processes gives what one gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from sweettok.data.writer import write_video
from sweettok.eval.pipeline import check_agreement, overlapped, precision
from sweettok.pixels import to_uint8

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer and seven clips, which two processes cannot share evenly."""
    folder = tmp_path_factory.mktemp("processes")
    tiny.tokenizer().save_pretrained(folder / "tok")
    (folder / "weights.pt").write_bytes(b"weights")
    for kind, seed in (("real", 0), ("fake", 10)):
        for i, clip in enumerate(to_uint8(tiny.clips(*range(seed, seed + 7)))):
            write_video(folder / kind / f"{i}.mkv", clip, 8, lossless=True)
    return folder


def launch(processes, *arguments):
    environment = {**os.environ, "NUM_PROCESSES": str(processes), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["VIRTUAL_ENV"] = sys.prefix
    command = ["bash", ROOT / "scripts" / "launch.sh", ROOT / "tests" / "extractors.py", *arguments]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 2


def alike(one, other):
    """Equal, but for the rounding of sums that were made in another order."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == pytest.approx(other, rel=1e-9, abs=1e-12) if isinstance(one, float) else one == other


@pytest.fixture(scope="module")
def reports(folder):
    """Both evaluations by one process and by two, in one launch each, since starting takes most of the time."""
    more = ["--i3d", folder / "weights.pt", "--set", "detector=means", "--workers", "0", "--batch-size", "2"]
    for count in (1, 2):
        rfvd = ["rfvd", "--checkpoint", folder / "tok", "--data", folder / "real", "--bootstrap", "20"]
        rfvd += ["--cache", folder / f"rfvd{count}", "--out", folder / f"rfvd{count}.json"]
        # Both runs look into a folder of each process: in the second, only process 0 finds features.
        gfvd = ["gfvd", "--fake", folder / "fake", "--real", folder / "real"]
        gfvd += ["--cache", folder / "gfvdRANK", "--out", folder / f"gfvd{count}.json"]
        launch(count, *rfvd, *more, "+", *gfvd, *more)
    return folder


@pytest.mark.parametrize("kind", ["rfvd", "gfvd"])
def test_two_processes_report_what_one_reports(reports, kind):
    one, two = (json.loads((reports / f"{kind}{count}.json").read_text()) for count in (1, 2))
    assert one["results"][kind]["value"] > 0 and one["data"] == two["data"]
    assert alike(one, two)
    # Process 1 neither reads nor writes a cache.
    assert (reports / "gfvd0").exists() and not (reports / "gfvd1").exists()


def test_processes_that_see_other_data_stop(monkeypatch):
    monkeypatch.setattr("sweettok.eval.pipeline.gather_objects", lambda value: [value, value])
    check_agreement(clips="a", protocol="b")
    monkeypatch.setattr("sweettok.eval.pipeline.gather_objects", lambda value: [value, "c"])
    with pytest.raises(ValueError, match="clips is a on process 0 and c on process 1; give paths to the same files"):
        check_agreement(clips="a")


def test_making_and_using_overlap_in_order_and_without_piling_up():
    made, used, waiting = [], [], []

    def items():
        for number in range(20):
            waiting.append(number - len(used))
            made.append(number)
            yield number

    overlapped(items(), used.append)
    assert used == made == list(range(20))
    assert max(waiting) <= 4


@pytest.mark.parametrize("side", ["made", "used"])
def test_errors_of_both_sides_arrive(side):
    def items():
        yield torch.zeros(1)
        if side == "made":
            raise ValueError("made badly")

    def use(item):
        if side == "used":
            raise ValueError("used badly")

    with pytest.raises(ValueError, match=f"{side} badly"):
        overlapped(items(), use)


@pytest.mark.parametrize("tf32", [False, True])
def test_precision_is_set_and_given_back(tf32):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with pytest.raises(ValueError, match="out"), precision(tf32):
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        assert torch.backends.cudnn.allow_tf32 is tf32
        raise ValueError("out")
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
