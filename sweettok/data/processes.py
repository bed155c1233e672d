"""The processes that share the work of a command."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

PATIENCE = timedelta(days=7)  # that they wait for each other: shares of the work may take very different times
Result = TypeVar("Result")


def join_processes() -> PartialState:
    """This process among those that were launched. ValueError where each would think that it is alone.

    By itself PartialState does not look at ACCELERATE_USE_CPU.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)
    launched = int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1
    if state.num_processes < launched:
        raise ValueError(
            f"{launched} processes were launched, but each sees {state.num_processes}: there is no GPU to share out. "
            "Set ACCELERATE_USE_CPU=true to work on CPUs"
        )
    return state


def main_first(state: PartialState, work: Callable[[], Result]) -> Result:
    """work() on the main process, and after it on all others, even if it failed there: none waits for ever."""
    try:
        if state.is_main_process:
            return work()
    finally:
        state.wait_for_everyone()
    return work()
