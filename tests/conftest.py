"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def few_threads():
    """Small problems run fastest on one thread; OMP_NUM_THREADS asks for more."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with golden numbers and real clips; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("SWEETTOK_REFERENCE", ROOT.parent / "shared"))
    if not (folder / "reference" / "golden").is_dir():
        pytest.skip(f"golden numbers are not at {folder} (set SWEETTOK_REFERENCE)")
    return folder


@pytest.fixture(scope="session")
def golden_rule(shared):
    """The module that fills weights by rule, loaded from the reference folder."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("golden_weights", shared / "reference" / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
