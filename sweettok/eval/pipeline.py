"""Shared parts of both evaluations: options, batches of each process, overlap of decoding and scoring, precision."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.utils.data import Dataset
from tqdm import tqdm

from sweettok.data.dataset import make_eval_loader, plain_errors
from sweettok.distributed import from_main, gather_objects, join_processes, together
from sweettok.eval.distance import LEAST_REPEATS, refusal
from sweettok.eval.features import FeatureExtractor, find_detector, load_extractor, missing_weights
from sweettok.eval.i3d import convolutions
from sweettok.eval.protocol import Protocol
from sweettok.store import sha256

AHEAD = 2  # batches that may wait to be scored
Batch = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Options of both evaluations that are not part of the protocol.

    Args:
        i3d: file with the weights of I3D. Default: the one in torch's cache, if there is one.
        bootstrap: number of resampled sets for an interval of the distance: 0 for none, or at least 20.
        cache: folder for the features of real clips, reused by later runs.
        batch_size: clips per batch.
        workers: processes that read videos, for each device.
    """

    i3d: str | Path | None = None
    bootstrap: int = 0
    cache: str | Path | None = None
    batch_size: int = 4
    workers: int = 2

    def __post_init__(self) -> None:
        if self.bootstrap and self.bootstrap < LEAST_REPEATS:
            least = f"at least {LEAST_REPEATS} resampled sets"
            raise ValueError(f"bootstrap must be 0 (no interval), or {least}; got {self.bootstrap}")

    def open_detector(self, protocol: Protocol, clips: int) -> tuple[FeatureExtractor | None, Protocol, str | None]:
        """The feature extractor and the protocol with its hash; or None, the protocol and why there is no distance."""
        path = from_main(lambda: find_detector(protocol, self.i3d))
        extractor = together(lambda: load_extractor(path, protocol))
        refused = refusal(clips, protocol.scored_frames, extractor, missing_weights(protocol))
        if refused:
            return None, protocol, refused
        digest = together(lambda: sha256(path))
        check_agreement(detector=digest)
        return extractor.to(join_processes().device), protocol.filled(detector_file=digest), None

    def batches(self, dataset: Dataset, name: str) -> Iterator[Batch]:
        """Batches of this process's share of a dataset, on its device; "index" (B,) has the numbers of the clips."""
        state = join_processes()
        rank, processes = state.process_index, state.num_processes
        loader = make_eval_loader(dataset, self.batch_size, self.workers, rank, processes)
        numbers = torch.arange(rank, len(dataset), processes).split(self.batch_size)
        hidden = None if state.is_main_process else True  # None: shown on terminals only
        bar = tqdm(plain_errors(loader), desc=name, total=len(loader), unit="batch", disable=hidden)
        for index, batch in zip(numbers, bar, strict=True):
            yield send_to_device({**batch, "index": index}, state.device, non_blocking=True)


def check_agreement(**values: Any) -> None:
    """Raise ValueError on every process if the processes have different values, for example because of local files."""
    for name, value in values.items():
        found = gather_objects(value)
        rank = next((rank for rank, other in enumerate(found) if other != found[0]), None)
        if rank is not None:
            raise ValueError(
                f"the processes see different data: {name} is {found[0]} on process 0 and {found[rank]} on process "
                f"{rank}; give paths to the same files on every machine"
            )


def collect(made: Iterable[Batch], describe: Callable[[Batch], dict[str, Sequence]]) -> dict[int, dict[str, Any]]:
    """Apply `describe` to each batch while the next ones are made; returns {number of a clip: its values}.

    describe: batch -> columns with one value per clip.
    """
    found: dict[int, dict[str, Any]] = {}

    @torch.no_grad()
    def use(batch: Batch) -> None:
        columns = describe(batch)
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        found.update(zip(batch["index"].tolist(), rows, strict=True))

    overlapped(made, use)
    return found


def overlapped(made: Iterable[Any], use: Callable[[Any], None]) -> None:
    """Call `use` with each item of `made`, in order, on another thread, while the next items are made.

    At most AHEAD items wait. Exceptions of both are raised here.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future] = deque()
        for item in made:
            waiting.append(pool.submit(use, item))
            if len(waiting) > AHEAD:
                waiting.popleft().result()
        for future in waiting:
            future.result()


def in_order(*parts: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """The clips of all processes, ordered by number."""
    found = {number: clip for part in parts for number, clip in part.items()}
    return [found[number] for number in sorted(found)]


@contextmanager
def precision(tf32: bool) -> Iterator[None]:
    """Context in which float32 matrix products and convolutions may use TF32, or not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with convolutions(tf32):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
