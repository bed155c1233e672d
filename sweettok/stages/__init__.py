"""Training stages: a run configuration and a task each; STAGES lists them."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sweettok.config import build, find_config
from sweettok.stages.generator import GeneratorRun, GeneratorTask
from sweettok.stages.proxy import ProxyRun, ProxyTask
from sweettok.stages.spatial import SpatialRun, SpatialTask
from sweettok.stages.stage1 import Stage1Run, Stage1Task
from sweettok.stages.stage2 import Stage2Run, Stage2Task
from sweettok.train.config import RunConfig

RUNS = {
    "proxy": ProxyRun,
    "spatial": SpatialRun,
    "stage1": Stage1Run,
    "stage2": Stage2Run,
    "generator": GeneratorRun,
}
STAGES = {
    "proxy": ProxyTask,
    "spatial": SpatialTask,
    "stage1": Stage1Task,
    "stage2": Stage2Task,
    "generator": GeneratorTask,
}


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a run's YAML file, apply `key.path=value` overrides, and return the typed configuration of its stage."""
    path = find_config(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file at {path}")
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"override {override!r} is not of the form key.path=value")
    try:
        node = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        stage = node.get("stage")
    except (OSError, TypeError, AttributeError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} is no YAML file of settings: {str(error).splitlines()[0]}") from error
    if stage not in RUNS:
        raise ValueError(f"{path}: `stage` must be one of {', '.join(RUNS)}; got {stage!r}")
    try:
        return build(RUNS[stage], node)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
