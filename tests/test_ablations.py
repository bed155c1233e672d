"""The script that compares the variants of the tokenizer: its table, and one variant trained and scored."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import stages
from conftest import import_file

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "bench" / "ablations.py"


@pytest.fixture(scope="module")
def ablations():
    return import_file(SCRIPT, "ablations")


def scores(psnr, motion=20.0):
    return {"psnr": psnr, "motion psnr": motion, "bits": 1000.0, "ids": 20}


def test_intervals(ablations):
    mean, half = ablations.interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.3027 / 3**0.5, rel=1e-4))  # Student's t with 2 degrees of freedom
    assert ablations.interval([5.0]) == (5.0, None)


def test_table_and_orders(ablations):
    results = {
        "dqae": {0: scores(20.0), 1: scores(22.0)},
        "flat queries": {0: scores(21.0), 1: scores(22.5)},
        "linear down-sampling": {1: scores(19.0, 25.0)},
    }
    lines = ablations.table(results).splitlines()
    assert lines[0] == "| variant | seeds | psnr | motion psnr | bits | psnr against dqae | rFVD in the paper |"
    assert lines[3] == "| flat queries | 2 | 21.75 ± 9.53 | 20.00 ± 0.00 | 1,000 ± 0 | +0.75 ± 3.18 | 35.15 |"
    assert lines[4] == "| linear down-sampling | 1 | 19.00 | 25.00 | 1,000 | -3.00 | 227.65 |"
    assert lines[6:] == [
        "Compression, best first. Paper (rFVD): dqae, flat queries, linear down-sampling.",
        "By psnr: flat queries, dqae, linear down-sampling (another order).",
        "By motion psnr: linear down-sampling, dqae, flat queries (another order).",
    ], "without all codebooks, there is no order of codebooks"


def test_a_variant_is_trained_scored_and_reused(ablations, runs, tmp_path, fresh_accelerator, monkeypatch):
    called = []

    def run(command, **_):
        stages.AcceleratorState._reset_state(reset_partial_state=True)
        called.append(command[3])
        if command[4] == "probe":  # needs more clips than there are
            results = {name: {"linear": {"accuracy": 0.25}} for name in ("all words", "pixels")}
            Path(command[-1]).write_text(json.dumps({"results": results}))
            return SimpleNamespace(returncode=0)
        return SimpleNamespace(returncode=stages.command(command[3:]))

    monkeypatch.setattr(ablations.subprocess, "run", run)
    inputs = {"proxy": runs / "proxy" / "final", "prior": runs / "prior", "stage1": runs / "stage1.yaml"}
    inputs |= {"stage2": runs / "stage2.yaml", "train": runs / "clips" / "train.txt"}
    inputs |= {"validation": runs / "clips" / "val.txt", "out": tmp_path, "budget": 4}
    options = [str(word) for name, value in inputs.items() for word in (f"--{name}", value)]
    command = [str(SCRIPT), *options, "--variants", "small", "--also", "small", "tokenizer.head_hidden=8"]

    def call(*more):
        monkeypatch.setattr(sys, "argv", [*command, *more])
        ablations.main()
        return json.loads((tmp_path / "ablations.json").read_text())["results"]["small"]

    found = call("--seeds", "0")
    assert called == ["train", "train", "eval"] and found["0"]["ids"] == 20 and 0 < found["0"]["psnr"] < 40
    assert found["0"]["spatial words used"] >= 1 and found["0"]["bits"] > 20
    assert call("--seeds", "0", "1", "--report") == found and call("--seeds", "0") == found and len(called) == 3
    probe = ["--probe", str(inputs["train"]), str(inputs["validation"])]
    probed = call("--seeds", "0", *probe)
    assert called[3:] == ["eval"] and probed == {"0": found["0"] | {"class by all words": 25.0}}
    assert (tmp_path / "ablations.png").stat().st_size > 1000
    assert "| small | 1 |" in (tmp_path / "ablations.md").read_text()
    monkeypatch.setattr(sys, "argv", [*command, "--report", "--set", "tokenizer.num_null_kv=1"])
    with pytest.raises(ValueError, match="nothing is finished in"):
        ablations.main()
    monkeypatch.setattr(sys, "argv", [*command, "--variants", "smal"])
    with pytest.raises(ValueError, match="no variant 'smal'; there are dqae, .*, small"):
        ablations.main()
