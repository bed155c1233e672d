"""Communication between the processes of one command: joining, shared decisions and failures, sums of tensors.

Every decision before a collective operation goes through `from_main` or `together`: processes that decide differently
would wait for each other forever. With a single process, all functions work without communication.
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

Result = TypeVar("Result")


def join_processes(timeout: timedelta = timedelta(days=7)) -> PartialState:
    """Join the processes that a launcher started.

    Args:
        timeout: longest wait for other processes in a collective operation. The default is long because processes
            may take very different times for their shares of the work.

    Returns:
        accelerate's state: the device, the rank and the number of processes.

    Raises:
        ValueError: several processes were launched on a machine without GPUs, and ACCELERATE_USE_CPU is not set.
    """
    # Imported here, because models use this module without accelerate.
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # PartialState does not read ACCELERATE_USE_CPU by itself.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=timeout)
    launched = int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1
    if state.num_processes < launched:
        raise ValueError(
            f"{launched} processes were launched, but each sees {state.num_processes}, because there is no GPU. "
            "Set ACCELERATE_USE_CPU=true to work on CPUs"
        )
    return state


def distributed() -> bool:
    """Whether there are other processes."""
    return world_size() > 1


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process; the main process has 0."""
    return dist.get_rank() if distributed() else 0


def from_main(work: Callable[[], Result]) -> Result:
    """Run `work()` on the main process only; every process returns its result or raises its exception."""
    if not distributed():
        return work()
    result, error = _attempt(work) if rank() == 0 else (None, None)
    box = [result, _copy_of(error)]
    dist.broadcast_object_list(box, src=0)
    if error is not None or box[1] is not None:
        raise error or box[1]
    return box[0]


def together(work: Callable[[], Result]) -> Result:
    """Run `work()` on every process. If it fails on any, all raise: their own exception, or else the first failure."""
    if not distributed():
        return work()
    result, error = _attempt(work)
    failures = [failure for failure in gather_objects(_copy_of(error)) if failure is not None]
    if failures:
        raise error or failures[0]
    return result


def main_first(work: Callable[[], Result]) -> Result:
    """Run `work()` on the main process, then on the others. If it fails on any, all raise."""
    first = together(lambda: work() if rank() == 0 else None)
    return together(lambda: first if rank() == 0 else work())


def _attempt(work: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _copy_of(error: Exception | None) -> Exception | None:
    """An exception that other processes can unpickle: the same type if it can be rebuilt from its arguments."""
    try:
        return copy.copy(error)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def gather_objects(value: Any) -> list[Any]:
    """The values of all processes, in order of rank."""
    values = [value] * world_size()
    if distributed():
        dist.all_gather_object(values, value)
    return values


def add_up(tensor: Tensor) -> Tensor:
    """Sum a tensor over the processes, in place, and return it."""
    if distributed():
        dist.all_reduce(tensor)
    return tensor


def gather_rows(rows: Tensor) -> Tensor:
    """(N, ...) on each process, with equal N -> (N * processes, ...), in order of rank."""
    if not distributed():
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)
