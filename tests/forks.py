"""Processes that start at once: forks of one that has imported torch and has not made a backward pass."""

import multiprocessing
import os
from pathlib import Path

TESTS = Path(__file__).parent


def fork_server() -> str:
    """Name of the start method; the first process starts the server, which takes seconds.

    A fork of the tests themselves would not do: torch refuses a backward pass in a fork of a process that has made one.
    """
    multiprocessing.set_forkserver_preload(["test_train_loop", "toy_task", "stages"])
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = path
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    return "forkserver"
