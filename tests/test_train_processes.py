"""Two processes of every stage equal one: gradients of a step, and losses and weights over ten steps."""

import os
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from omegaconf import OmegaConf
from safetensors.torch import load_file
from stages import ROOT, STAGES, build_task, config_of, log_lines, make_task, snapshot
from test_train_loop import results

from sweettok.config import to_dict
from sweettok.train.loop import fit

ONE_STEP = ["train.max_steps=1", "train.sample_every=0", "train.eval_every=0"]
# Without accumulation, since the discriminator's norms are over micro-batches. With this epsilon, a gradient that is
# zero but for rounding makes AdamW take a step that is too, and not a whole one.
TEN = [
    "train.max_steps=10",
    "train.global_batch_size=4",
    "train.sample_every=0",
    "train.eval_every=4",
    "train.save_every=10",
    "train.log_every=1",
    "optimizer.warmup_steps=2",
    "optimizer.eps=1e-3",
]
RUNNER = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from stages import build_task
from sweettok.stages import load_config
from sweettok.train.loop import fit
from accelerate.utils import set_seed
for path in sys.argv[2:]:
    run = load_config(path)
    set_seed(run.train.seed)
    fit(build_task(run), run)
torch.distributed.destroy_process_group()
"""


def launch(folder, *runs):
    """Train each on two processes."""
    files = [folder / f"{number}.yaml" for number in range(len(runs))]
    for run, file in zip(runs, files, strict=True):
        OmegaConf.save(OmegaConf.create(to_dict(run)), file)
    (folder / "runner.py").write_text(RUNNER)
    environment = {
        **os.environ,
        "NUM_PROCESSES": "2",
        "OMP_NUM_THREADS": "1",
        "VIRTUAL_ENV": sys.prefix,
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = ["bash", ROOT / "scripts" / "launch.sh", folder / "runner.py", ROOT / "tests", *files]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (done.stdout + done.stderr).count(", on 2 x cpu, ") == len(runs)
    assert "Warning" not in done.stderr, done.stderr


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory):
    """Of every stage, ten steps by one process in `one` and by two in `two`, with 3 clips to validate on; and in
    `step` one step by two processes, the first of those in `runs`."""
    folder, twos = tmp_path_factory.mktemp("processes"), []
    lines = (runs / "clips" / "train.txt").read_text().splitlines(keepends=True)
    (runs / "clips" / "three.txt").write_text("".join(lines[:3]))
    for stage in STAGES:
        on_clips = stage in ("proxy", "spatial", "stage1", "stage2")
        more = [f"data.validation={runs / 'clips' / 'three.txt'}"] if on_clips else ["train.eval_clips=3"]
        late = ["loss.adversarial.start_step=3", "discriminator_optimizer.eps=1e-3"]
        more += late if stage in ("proxy", "stage2") else []
        one, two = (
            config_of(runs, stage, *TEN, *more, f"train.output_dir={folder / name / stage}") for name in ("one", "two")
        )
        AcceleratorState._reset_state(reset_partial_state=True)
        task = make_task(build_task, one)
        torch.save(snapshot(task.model), folder / f"{stage}.pt")
        fit(task, one)
        twos += [two, config_of(runs, stage, *ONE_STEP, f"train.output_dir={folder / 'step' / stage}")]
    AcceleratorState._reset_state(reset_partial_state=True)
    launch(folder, *twos)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_of_two_processes_is_that_of_one(runs, folder, stage):
    """Terms, norms of gradients and the gradients themselves, which AdamW's first moments are after one step."""
    one, two = runs / stage / "checkpoint-1", folder / "step" / stage / "checkpoint-1"
    first, second = log_lines(runs / stage)[0], log_lines(folder / "step" / stage)[0]
    names = {name for name in first if name.startswith("train/")}
    assert names == {name for name in second if name.startswith("train/")}
    for name in names:
        assert second[name] == pytest.approx(first[name], rel=1e-5, abs=1e-8), name

    optimizers = [torch.load(folder / "optimizers.pt", weights_only=True)["modules"] for folder in (one, two)]
    alone = stage not in ("proxy", "stage2")
    assert optimizers[0].keys() == ({"generator"} if alone else {"generator", "discriminator"})
    for name, saved in optimizers[0].items():
        moments = [entry["exp_avg"] for entry in saved["optimizer"]["state"].values()]
        others = [entry["exp_avg"] for entry in optimizers[1][name]["optimizer"]["state"].values()]
        total = torch.stack([moment.norm() for moment in moments]).norm()
        for index, (mine, other) in enumerate(zip(moments, others, strict=True)):
            # Some are zero but for rounding, as those of biases before a batch norm.
            if max(mine.norm(), other.norm()) > 1e-6 * total:
                assert (mine - other).norm() <= 1e-5 * mine.norm(), f"{name}, parameter {index}"
    for file in ("model", "discriminator"):  # buffers: the proxy's code table, batch norm's running statistics
        if (one / f"{file}.safetensors").exists():
            mine, other = load_file(one / f"{file}.safetensors"), load_file(two / f"{file}.safetensors")
            for name in mine:
                if any(part in name for part in ("decoder.codebook.", "running_")):
                    torch.testing.assert_close(other[name], mine[name], rtol=1e-5, atol=1e-6, msg=f"{file}: {name}")


@pytest.mark.parametrize("stage", STAGES)
def test_ten_steps_of_two_processes_are_those_of_one(folder, stage):
    one, two = folder / "one" / stage, folder / "two" / stage
    slack = 10 if stage == "proxy" else 1  # rounding may choose another code, and that is no longer rounding
    for kind, count in (("train/", 10), ("eval/", 3)):
        mine, others = log_lines(one, kind), log_lines(two, kind)
        assert len(mine) == len(others) == count
        for first, second in zip(mine, others, strict=True):
            expected = {key: value for key, value in results(first).items() if key.startswith(("train/loss/", "eval/"))}
            found = {key: second[key] for key in expected}
            assert found == pytest.approx(expected, rel=1e-4 * slack, abs=1e-6), first["step"]
    start = torch.load(folder / f"{stage}.pt", weights_only=True)
    for file in ("model", "ema"):
        weights, others = (load_file(folder / "checkpoint-10" / f"{file}.safetensors") for folder in (one, two))
        moved = distance(weights, start)
        assert moved > 0 and distance(weights, others) < 1e-3 * slack * moved, file


def distance(one, other) -> float:
    """Euclidean, over all tensors."""
    return sum((value - other[name]).double().square().sum().item() for name, value in one.items()) ** 0.5
