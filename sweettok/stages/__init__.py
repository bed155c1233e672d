"""Training stages. To add one, write its task and add it to `STAGES`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from sweettok.config import build, find_config, parse_overrides, read_settings
from sweettok.stages.generator import GeneratorTask
from sweettok.stages.proxy import ProxyTask
from sweettok.stages.spatial import SpatialTask
from sweettok.stages.stage1 import Stage1Task
from sweettok.stages.stage2 import Stage2Task
from sweettok.stages.vtok import JointTask
from sweettok.stages.vtok_decoder import VTokDecoderTask
from sweettok.stages.vtok_encoder import VTokEncoderTask
from sweettok.train.config import RunConfig
from sweettok.train.task import Task

# In the order of training.
STAGES: dict[str, type[Task]] = {
    task.name: task
    for task in (
        ProxyTask,
        SpatialTask,
        Stage1Task,
        Stage2Task,
        GeneratorTask,
        VTokEncoderTask,
        VTokDecoderTask,
        JointTask,
    )
}


def load_config(path: str | Path, overrides: Sequence[str] = (), earlier: Sequence[RunConfig] = ()) -> RunConfig:
    """Read the YAML file of a run and return the configuration of its stage.

    Args:
        path: a file, or the name of a configuration of the package, such as configs/stage1/ucf101.yaml. Its settings
            override those of the files that it names as `base`.
        overrides: `key.path=value` settings that override the file's.
        earlier: runs to be trained before this one, whose outputs it may use.

    Raises FileNotFoundError, or ValueError if the file or a setting is wrong.
    """
    path = find_config(path)
    settings = OmegaConf.merge(read_settings(path), parse_overrides(overrides))
    stage = settings.get("stage")
    if not isinstance(stage, str) or stage not in STAGES:
        raise ValueError(f"{path}: `stage` must be one of {', '.join(STAGES)}; got {stage!r}")
    try:
        return build(STAGES[stage].run_class, STAGES[stage].complete(settings, earlier))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def build_task(run: RunConfig) -> Task:
    """The task of a run's stage, with its models and data, on the CPU."""
    return STAGES[run.stage](run)
