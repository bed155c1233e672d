"""Fixtures shared by all tests."""

import os
import sys
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).resolve().with_name("golden")


@pytest.fixture(scope="session", autouse=True)
def few_threads():
    """Small problems run fastest on one thread, in processes that tests start too; OMP_NUM_THREADS asks for more."""
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """Measured numbers of the published code; its README says what they are."""
    return GOLDEN


@pytest.fixture(scope="session")
def golden_rule():
    """The module tests/golden/weights.py, which fills weights by rule."""
    return import_file(GOLDEN / "weights.py", "golden_weights")


@pytest.fixture(scope="session")
def golden_priors():
    """The module tests/golden/priors.py, which makes word graphs of the published sizes."""
    return import_file(GOLDEN / "priors.py", "golden_priors")


@pytest.fixture(scope="session")
def golden_prior(golden_priors, tmp_path_factory):
    """The prior of the published sizes, read from files in the published format."""
    from sweettok.priors import load_prior

    folder = tmp_path_factory.mktemp("golden_priors")
    golden_priors.main(folder)
    return load_prior(folder)


def import_file(path: Path, name: str):
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def videos() -> Path:
    """A folder with real clips, which SWEETTOK_VIDEOS names; without it, the tests that read them skip."""
    folder = Path(os.environ.get("SWEETTOK_VIDEOS", ""))
    if not os.environ.get("SWEETTOK_VIDEOS") or not folder.is_dir():
        pytest.skip("set SWEETTOK_VIDEOS to the folder of real clips")
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """A folder in which every stage was trained, each on the last (see stages.py)."""
    import stages

    return stages.train_all(tmp_path_factory.mktemp("stages"))


@pytest.fixture
def fresh_accelerator():
    """Accelerate keeps its state for the process; before and after this, it has none."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
