"""Everything that the processes of one command exchange: they join, share decisions and failures, and add tensors up.

Every decision that leads to a collective operation goes through `from_main` or `together`; otherwise processes that
decide differently would wait for each other. Without other processes every function here works alone.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import PartialState

TIMEOUT = timedelta(days=7)  # of a collective operation: the shares of a command's work may take very different times
Result = TypeVar("Result")


def join_processes(timeout: timedelta = TIMEOUT) -> PartialState:
    """Join the processes that a launcher started.

    Args:
        timeout: how long a process waits for the others in a collective operation.

    Returns:
        accelerate's state: the device, the rank and the number of processes.

    Raises:
        ValueError: several processes were launched, but each would work alone, because there is no GPU to share out.
    """
    # Imported late: models use this module without accelerate.
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # PartialState does not read ACCELERATE_USE_CPU by itself.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=timeout)
    launched = int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1
    if state.num_processes < launched:
        raise ValueError(
            f"{launched} processes were launched, but each sees {state.num_processes}: there is no GPU to share out. "
            "Set ACCELERATE_USE_CPU=true to work on CPUs"
        )
    return state


def distributed() -> bool:
    """Whether there are other processes."""
    return world_size() > 1


def world_size() -> int:
    """Number of processes, 1 outside of distributed work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, 0 for the main one."""
    return dist.get_rank() if distributed() else 0


# ---------------------------------------------------------------------------------------------- decisions and failures


def from_main(work: Callable[[], Result]) -> Result:
    """Result of `work()`, which runs on the main process alone, on every process; its exception is raised on all."""
    if not distributed():
        return work()
    result, error = _attempt(work) if rank() == 0 else (None, None)
    box = [result, _copy_of(error)]
    dist.broadcast_object_list(box, src=0)
    if error is not None or box[1] is not None:
        raise error or box[1]
    return box[0]


def together(work: Callable[[], Result]) -> Result:
    """Result of `work()`, which runs on every process; if it fails on any, every process raises.

    A process whose own work succeeded raises the exception of the first process whose work failed.
    """
    if not distributed():
        return work()
    result, error = _attempt(work)
    failures = [failure for failure in gather_objects(_copy_of(error)) if failure is not None]
    if failures:
        raise error or failures[0]
    return result


def main_first(work: Callable[[], Result]) -> Result:
    """Result of `work()`, which runs on the main process and only then on the others; if any fails, all raise."""
    first = together(lambda: work() if rank() == 0 else None)
    return together(lambda: first if rank() == 0 else work())


def _attempt(work: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _copy_of(error: Exception | None) -> Exception | None:
    """What other processes raise for an exception of this one: itself where it can be rebuilt from its arguments."""
    try:
        return copy.copy(error)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


# --------------------------------------------------------------------------------------------------- values and tensors


def gather_objects(value: Any) -> list[Any]:
    """The values of all processes in the order of their ranks, on every process."""
    values = [value] * world_size()
    if distributed():
        dist.all_gather_object(values, value)
    return values


def add_up(tensor: Tensor) -> Tensor:
    """Replace a tensor by its sum over the processes, in place; returns it."""
    if distributed():
        dist.all_reduce(tensor)
    return tensor


def gather_rows(rows: Tensor) -> Tensor:
    """(N, ...) of this process, with the same N on all -> (N * processes, ...) in the order of the ranks."""
    if not distributed():
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)
