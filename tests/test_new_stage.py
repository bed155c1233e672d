"""A new stage is one Python file, of which this is an example, one YAML file and one entry of `STAGES`."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import TensorDataset

from sweettok.cli.main import main
from sweettok.stages import STAGES, load_config
from sweettok.stages.video import trained_module
from sweettok.train.config import OptimizerConfig, TrainConfig
from sweettok.train.task import Task

# ---------------------------------------------------------------------------------------------- stages/average.py


@dataclass(frozen=True)
class AverageDataConfig:
    num_workers: int = 0
    points: int = 8


@dataclass(frozen=True)
class AverageRun:
    """Learn to average numbers."""

    stage: str = "average"
    width: int = 4
    data: AverageDataConfig = field(default_factory=AverageDataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


class Points(TensorDataset):
    def __getitem__(self, item):
        _, index = item
        return {"x": self.tensors[0][index], "key": str(index)}


class AverageTask(Task):
    name = "average"
    run_class = AverageRun

    def __init__(self, run: AverageRun, inputs=None):
        self.run = run
        self.model = nn.Linear(run.width, 1)
        self.trained = {"generator": trained_module("generator", self.model, run.optimizer, run.train)}
        self.train_dataset = Points(torch.arange(run.data.points * run.width).float().view(-1, run.width) / 32)

    def example_batch(self, size):
        return {"x": torch.zeros(size, self.run.width)}

    def losses(self, batch, context):
        x = batch["x"]
        yield "generator", (self.trained["generator"].module(x)[:, 0] - x.mean(1)).square().mean(), {}

    def validate(self, batch):
        raise AssertionError("there is no validation data")

    def export(self, folder: Path, training):
        save_file(self.model.state_dict(), folder / "model.safetensors")


# ------------------------------------------------------------------------------------------- configs/average.yaml

CONFIG = {
    "stage": "average",
    "optimizer": {"lr": 0.05, "weight_decay": 0.0},
    "train": {"output_dir": "out", "max_steps": 6, "global_batch_size": 4, "save_every": 2, "sample_every": 0},
}


def test_a_stage_of_two_files(tmp_path, monkeypatch, capsys, fresh_accelerator):
    """It is planned, trained, resumed and shown by the same commands as the others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(STAGES, "average", AverageTask)
    Path("average.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    assert isinstance(load_config("average.yaml"), AverageRun)
    assert main(["plan", "average.yaml"]) == 0
    assert "average.yaml: average\n  steps    6 of 4 clips" in capsys.readouterr().out
    assert main(["config", "average.yaml", "width=2"]) == 0
    assert "width: 2" in capsys.readouterr().out

    assert main(["train", "average.yaml", "train.output_dir=whole"]) == 0
    assert main(["train", "average.yaml", "train.max_steps=4"]) == 0
    assert main(["train", "average.yaml"]) == 0
    assert "resumed from out/checkpoint-4" in capsys.readouterr().out
    whole, resumed = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "out"))
    assert whole.keys() == resumed.keys() == {"weight", "bias"}
    assert not whole["weight"].equal(nn.Linear(4, 1).weight)


def test_an_unknown_stage_is_named(tmp_path):
    path = tmp_path / "average.yaml"
    path.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    with pytest.raises(ValueError, match="`stage` must be one of proxy, spatial, .*; got 'average'"):
        load_config(path)
