"""How evaluation runs: on how many processes, in which precision, and what overlaps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from sweettok.data.dataset import make_eval_loader, plain_errors
from sweettok.distributed import gather_objects, join_processes
from sweettok.eval.i3d import convolutions

AHEAD = 2  # batches that may wait for their scores
Part = TypeVar("Part")


def batches(dataset: Dataset, batch_size: int, workers: int, name: str) -> Iterator[dict[str, Any]]:
    """This process's share of the items, in batches whose tensors are on its device; `name` is on the progress bar."""
    state = join_processes()
    loader = make_eval_loader(dataset, batch_size, workers, state.process_index, state.num_processes)
    hidden = None if state.is_main_process else True  # None: shown on terminals alone
    for batch in tqdm(plain_errors(loader), desc=name, total=len(loader), unit="batch", disable=hidden):
        yield {
            key: value.to(state.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for key, value in batch.items()
        }


def overlapped(made: Iterable[Any], use: Callable[[Any], None]) -> None:
    """Call `use` with each item of `made`, in order, on a thread of its own, while the next items are being made.

    At most AHEAD wait, so memory stays bounded; exceptions of both sides are raised here.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future] = deque()
        for item in made:
            waiting.append(pool.submit(use, item))
            if len(waiting) > AHEAD:
                waiting.popleft().result()
        for future in waiting:
            future.result()


def merged(part: Part) -> Part:
    """The parts of all processes merged in their order, on every process; `part` has a `merge`."""
    first, *rest = gather_objects(part)
    for other in rest:
        first = first.merge(other)
    return first


def check_agreement(**values: Any) -> None:
    """Raise ValueError on every process where the processes have different values, as with node-local files."""
    for name, value in values.items():
        found = gather_objects(value)
        different = [rank for rank, other in enumerate(found) if other != found[0]]
        if different:
            rank = different[0]
            raise ValueError(
                f"the processes see different data: {name} is {found[0]} on process 0 and {found[rank]} on process "
                f"{rank}; give paths to the same files on every machine"
            )


@contextmanager
def precision(tf32: bool) -> Iterator[None]:
    """Products and convolutions of float32 values in float32, or with TF32 where the device has it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with convolutions(tf32):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
