"""The best model by a metric of validation is exported, and stays until it is beaten."""

import json

import pytest
import torch
from safetensors.torch import load_file
from toy_task import ToyTask, toy_run

from sweettok.train.loop import fit

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


class Scored(ToyTask):
    """Its validation finds what it is reported to, one value after the other."""

    def __init__(self, run, values):
        super().__init__(run)
        self.values = iter(values)

    def validate(self, batch):
        return {"score": torch.full((len(batch["clip"]),), next(self.values))}


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 3)])
def test_the_best_model_is_kept(tmp_path, mode, best):
    settings = {"best_metric": "score", "best_mode": mode, "eval_every": 1, "save_every": 1, "eval_clips": 4}
    scores = [9.0, 5.0, 7.0, float("nan"), 3.0, 7.0, 4.0]  # the first is asked for its names, once a start
    if mode == "min":
        scores[3], scores[4] = 3.0, float("nan")
    run = toy_run(tmp_path, max_steps=4, **settings)
    fit(Scored(run, scores), run)
    record = json.loads((tmp_path / "best" / "metric.json").read_text())
    assert record == {"metric": "score", "mode": mode, "value": 7.0 if mode == "max" else 3.0, "step": best}
    averages = tmp_path / f"checkpoint-{best}" / "ema.safetensors"
    exported = load_file(tmp_path / "best" / "model.safetensors")
    assert all(torch.equal(exported[name], value) for name, value in load_file(averages).items())

    run = toy_run(tmp_path, max_steps=6, **settings)  # equal or worse, after a resume, is not better
    fit(Scored(run, [0.0, 7.0, 6.0] if mode == "max" else [0.0, 3.0, 6.0]), run)
    assert json.loads((tmp_path / "best" / "metric.json").read_text()) == record


def test_the_best_of_nothing(tmp_path):
    run = toy_run(tmp_path, best_metric="psnr")
    with pytest.raises(ValueError, match="best_metric=psnr is no metric of the toy stage: use one of error"):
        fit(ToyTask(run), run)
    task = ToyTask(run)
    task.validation_dataset = None
    with pytest.raises(ValueError, match="needs validation clips"):
        fit(task, run)
    with pytest.raises(ValueError, match="set train.eval_every above 0"):
        toy_run(tmp_path, best_metric="error", eval_every=0)
