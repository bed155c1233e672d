"""Every stage, broken off and started again, equals the unbroken run bit for bit."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState
from stages import STAGES, build_task, config_of, log_lines, make_task
from test_train_loop import assert_equal, results

from sweettok.train.checkpoint import checkpoints
from sweettok.train.loop import fit

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

STEPS, BROKEN, SAVED = 6, 5, 4
# Eight clips: an epoch ends inside the part that is done again, after the discriminator's start, with accumulation.
SETTINGS = [
    f"train.max_steps={STEPS}",
    "train.global_batch_size=6",
    "train.micro_batch_size=3",
    "train.sample_every=0",
    "train.eval_every=2",
    f"train.save_every={SAVED}",
    "optimizer.warmup_steps=3",
]


class Broken(Exception):
    pass


def configure(runs, stage, folder, *more):
    late = ["loss.adversarial.start_step=2"] if stage in ("proxy", "stage2") else []
    return config_of(runs, stage, *SETTINGS, *late, f"train.output_dir={folder}", *more)


def train(run, break_at=None):
    """Train; returns what the training set was asked for in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    task = make_task(build_task, run)
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


@pytest.mark.parametrize(("stage", "kind"), [*((stage, "adamw") for stage in STAGES), ("stage1", "muon")])
def test_a_broken_run_equals_the_unbroken_one(runs, tmp_path, stage, kind):
    kind = f"optimizer.kind={kind}"
    everything = train(configure(runs, stage, tmp_path / "unbroken", kind))
    with pytest.raises(Broken):
        train(configure(runs, stage, tmp_path / "broken", kind, "data.num_workers=2"), break_at=BROKEN)
    assert [path.name for path in checkpoints(tmp_path / "broken")] == [f"checkpoint-{SAVED}"]
    assert log_lines(tmp_path / "broken")[-1]["step"] == BROKEN
    asked = train(configure(runs, stage, tmp_path / "broken", kind))

    # No clip was read to be thrown away (but for those that fit a fresh model, by their index alone).
    indexed = [item for item in asked if isinstance(item, tuple)]
    assert indexed == [item for item in everything if isinstance(item, tuple)][SAVED * 6 :]
    assert {epoch for epoch, _ in indexed} == {3, 4}

    one, other = (tmp_path / name / f"checkpoint-{STEPS}" for name in ("unbroken", "broken"))
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert "discriminator.safetensors" in names or stage not in ("proxy", "stage2")
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
