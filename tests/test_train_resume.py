"""Every stage, broken off and started again, equals the unbroken run bit for bit; two processes equal one."""

import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from stages import ROOT, STAGES, config_of, log_lines, make_task, script, snapshot
from test_train_loop import assert_equal, results

from sweettok.train.checkpoint import checkpoints
from sweettok.train.loop import fit

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

STEPS, BROKEN, SAVED = 6, 5, 4
# Eight clips: an epoch ends inside the part that is done again, after the discriminator's start, with accumulation.
SETTINGS = [
    f"train.max_steps={STEPS}", "train.global_batch_size=6", "train.micro_batch_size=3", "train.sample_every=0",
    "train.eval_every=2", f"train.save_every={SAVED}", "optimizer.warmup_steps=3",
]  # fmt: skip


class Broken(Exception):
    pass


def configure(runs, stage, folder, *more):
    late = ["loss.adversarial.start_step=2"] if stage in ("proxy", "stage2") else []
    return config_of(runs, stage, *SETTINGS, *late, f"train.output_dir={folder}", *more)


def train(run, break_at=None):
    """Train; returns what the training set was asked for in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    task = make_task(script.build_task, run)
    asked, losses = [], task.losses

    def watched(batch, context):
        if context.step == break_at:
            raise Broken
        yield from losses(batch, context)

    task.losses = watched
    kind = type(task.train_dataset)
    original = kind.__getitem__

    def getitem(self, item):
        if self is task.train_dataset:
            asked.append(item)
        return original(self, item)

    kind.__getitem__ = getitem
    try:
        fit(task, run)
    finally:
        kind.__getitem__ = original
    return asked


@pytest.mark.parametrize("stage", STAGES)
def test_a_broken_run_equals_the_unbroken_one(runs, tmp_path, stage):
    everything = train(configure(runs, stage, tmp_path / "unbroken"))
    with pytest.raises(Broken):
        train(configure(runs, stage, tmp_path / "broken", "data.num_workers=2"), break_at=BROKEN)
    assert [path.name for path in checkpoints(tmp_path / "broken")] == [f"checkpoint-{SAVED}"]
    assert log_lines(tmp_path / "broken")[-1]["step"] == BROKEN
    asked = train(configure(runs, stage, tmp_path / "broken"))

    # No clip was read to be thrown away (but for those that fit a fresh model, by their index alone).
    indexed = [item for item in asked if isinstance(item, tuple)]
    assert indexed == [item for item in everything if isinstance(item, tuple)][SAVED * 6 :]
    assert {epoch for epoch, _ in indexed} == {3, 4}

    one, other = (tmp_path / name / f"checkpoint-{STEPS}" for name in ("unbroken", "broken"))
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert "discriminator.safetensors" in names or stage in ("stage1", "generator")
    for name in names:
        if name.endswith(".safetensors"):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert_equal(*(torch.load(folder / "optimizers.pt", weights_only=True) for folder in (one, other)))
    described = [json.loads((folder / "state.json").read_text()) | {"tracker_id": None} for folder in (one, other)]
    assert described[0] == described[1]
    finals = [tmp_path / name / "final" / "model.safetensors" for name in ("unbroken", "broken")]
    assert finals[0].read_bytes() == finals[1].read_bytes()
    for kind in ("train/", "eval/"):
        lines = [log_lines(tmp_path / name, kind) for name in ("unbroken", "broken")]
        assert [results(line) for line in lines[0]] == [results(line) for line in lines[1]]


# --------------------------------------------------------------------------------------------------- two processes


# Without accumulation, since the discriminator's norms are over micro-batches. With this epsilon, a gradient that is
# zero but for rounding makes AdamW take a step that is too, and not a whole one.
TWENTY = [
    "train.max_steps=20", "train.global_batch_size=4", "train.sample_every=0", "train.eval_every=7",
    "train.save_every=20", "train.log_every=1", "optimizer.warmup_steps=3", "optimizer.eps=1e-3",
]  # fmt: skip
RUNNER = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from stages import script
from sweettok.config import load_config
from sweettok.train.loop import fit
from accelerate.utils import set_seed
for path in sys.argv[2:]:
    run = load_config(path)
    set_seed(run.train.seed)
    fit(script.build_task(run), run)
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def twenty(runs, tmp_path_factory):
    """Twenty steps of every stage, by one process in `one` and by two in `two`; 3 clips to validate on."""
    from omegaconf import OmegaConf

    from sweettok.config import to_dict

    folder, files = tmp_path_factory.mktemp("twenty"), []
    lines = (runs / "clips" / "train.txt").read_text().splitlines(keepends=True)
    (runs / "clips" / "three.txt").write_text("".join(lines[:3]))
    for stage in STAGES:
        more = [f"data.validation={runs / 'clips' / 'three.txt'}"] if stage != "generator" else ["train.eval_clips=3"]
        late = ["loss.adversarial.start_step=5", "discriminator_optimizer.eps=1e-3"]
        more += late if stage in ("proxy", "stage2") else []
        for name in ("one", "two"):
            run = config_of(runs, stage, *TWENTY, *more, f"train.output_dir={folder / name / stage}")
            if name == "one":
                AcceleratorState._reset_state(reset_partial_state=True)
                task = make_task(script.build_task, run)
                torch.save(snapshot(task.model), folder / f"{stage}.pt")
                fit(task, run)
            else:
                files.append(folder / f"{stage}.yaml")
                OmegaConf.save(OmegaConf.create(to_dict(run)), files[-1])
    (folder / "runner.py").write_text(RUNNER)
    environment = {
        **os.environ, "NUM_PROCESSES": "2", "OMP_NUM_THREADS": "1", "VIRTUAL_ENV": sys.prefix,
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = ["bash", ROOT / "scripts" / "launch.sh", folder / "runner.py", ROOT / "tests", *files]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_twenty_steps_of_two_processes_are_those_of_one(twenty, stage):
    one, two = twenty / "one" / stage, twenty / "two" / stage
    slack = 10 if stage == "proxy" else 1  # rounding may choose another code, and that is no longer rounding
    assert json.loads((two / "checkpoint-20" / "state.json").read_text())["world_size"] == 2
    for kind, count in (("train/", 20), ("eval/", 3)):
        mine, others = log_lines(one, kind), log_lines(two, kind)
        assert len(mine) == len(others) == count
        for first, second in zip(mine, others, strict=True):
            expected = {key: value for key, value in results(first).items() if key.startswith(("train/loss/", "eval/"))}
            found = {key: second[key] for key in expected}
            assert found == pytest.approx(expected, rel=1e-4 * slack, abs=1e-6), first["step"]
    start = torch.load(twenty / f"{stage}.pt", weights_only=True)
    for file in ("model", "ema"):
        weights, others = (load_file(folder / "checkpoint-20" / f"{file}.safetensors") for folder in (one, two))
        moved = distance(weights, start)
        assert moved > 0 and distance(weights, others) < 1e-3 * slack * moved, file


def distance(one, other) -> float:
    """Euclidean, over all tensors."""
    return sum((value - other[name]).double().square().sum().item() for name, value in one.items()) ** 0.5
