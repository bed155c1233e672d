"""Data set, sampler and loaders of clips; their order depends on seeds only."""

import random
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from sweettok.data.backends import ClipError
from sweettok.data.lists import ClipList
from sweettok.data.reader import Size, is_image, read_clip, read_within

SUBSTITUTES = 10  # clips that are tried in place of one that cannot be read


class ClipDataset(Dataset):
    """The clips of a list, read when indexed.

    An item is {"video": uint8 (3, frames, H, W), "label": int, -1 without labels, "key": str}. An index is
    (epoch, index), or only index for epoch 0. Random starts depend on (seed, epoch, clip), so that they are the same
    for any number of workers and processes. With `frames=1` lists may also contain still images.

    Args:
        frames, size, position, stride, resize, short, backend: as in `read_clip`.
        clips_per_video, flips: every clip of the list gives several items, its views: `clips_per_video` parts of the
            video (position "even"), with `flips` each followed by its mirror image.
        timeout: seconds after which a clip counts as unreadable.
        substitute: replace an unreadable clip by another one of the list, with its own label and key; up to SUBSTITUTES
            are drawn, depending on (seed, epoch, clip). Items then have "problem": "", or why a clip was replaced.

    Raises ClipError for an unreadable clip.
    """

    def __init__(
        self,
        clips: ClipList,
        frames: int,
        size: Size,
        position: str = "center",
        stride: int = 1,
        resize: str = "stretch",
        short: str = "repeat",
        seed: int = 0,
        backend: str = "auto",
        clips_per_video: int = 1,
        flips: bool = False,
        timeout: float = 600,
        substitute: bool = False,
    ):
        self.clips, self.frames, self.size, self.resize, self.seed = clips, frames, size, resize, seed
        self.options = {"position": position, "stride": stride, "short": short, "backend": backend}
        self.parts, self.flips, self.timeout, self.substitute = clips_per_video, flips, timeout, substitute
        self._last: tuple[tuple[int, ...], Tensor | None] = (), None
        self._unreadable: dict[int, str] = {}  # index -> error of a clip that is not read again

    def __len__(self) -> int:
        return len(self.clips) * self.parts * (2 if self.flips else 1)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        index, mirrored = divmod(index, 2) if self.flips else (index, 0)
        index, part = divmod(index, self.parts)
        video, index, problem = self._read_or_substitute(epoch, index, part)
        label = self.clips.labels[index] if self.clips.labels is not None else -1
        item = {"video": video.flip(-1) if mirrored else video, "label": label, "key": self.clips.keys[index]}
        return {**item, "problem": problem} if self.substitute else item

    def _read_or_substitute(self, epoch: int, index: int, part: int) -> tuple[Tensor, int, str]:
        """The clip, its index in the list, and why it is a substitute, or an empty text."""
        try:
            return self._read(epoch, index, part), index, ""
        except ClipError as error:
            if not self.substitute:
                raise
            problem = str(error)
        rng = random.Random(f"{self.seed} {epoch} {index} substitute")
        for _ in range(SUBSTITUTES):
            other = rng.randrange(len(self.clips))
            try:
                return self._read(epoch, other, part), other, problem
            except ClipError as error:
                last = error
        raise ClipError(f"{problem}; nor can {SUBSTITUTES} clips drawn in its place be read, the last of them {last}")

    def _read(self, epoch: int, index: int, part: int) -> Tensor:
        if self._last[0] == (epoch, index, part):  # the mirrored view follows the plain one
            return self._last[1]
        path = self.clips.paths[index]
        if index in self._unreadable:
            raise ClipError(self._unreadable[index], permanent=True)
        rng = random.Random(f"{self.seed} {epoch} {index}")
        try:
            video = read_within(self.timeout, path, lambda: self._decode(path, rng, part))
        except ClipError as error:
            if error.permanent and self.substitute:
                self._unreadable[index] = str(error)
            raise
        if self.flips:
            self._last = (epoch, index, part), video
        return video

    def _decode(self, path: Path, rng: random.Random, part: int) -> Tensor:
        if is_image(path) and self.frames != 1:
            reason = f"a still image cannot give {self.frames} frames; images need frames=1"
            raise ClipError(f"{path}: {reason}", permanent=True)
        options = {"resize": self.resize, "rng": rng, "part": (part, self.parts), **self.options}
        return read_clip(path, self.frames, self.size, **options)


class GlobalBatchSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of (epoch, index) for one process, in an order that does not depend on the number of processes.

    The order is a stream of epochs, each a permutation of all items that depends on (seed, epoch). Global batches are
    consecutive parts of the stream and may contain items of several epochs, so nothing is dropped or padded. Each
    process takes a contiguous share of every global batch, in micro-batches.

    Loaders read ahead, so the position counts only the batches that training reports with `advance()`. Iteration
    begins at that position.
    """

    def __init__(
        self,
        num_items: int,
        global_batch: int,
        rank: int,
        world_size: int,
        micro_batch: int,
        seed: int,
        shuffle: bool = True,
    ):
        if num_items < 1:
            raise ValueError("there are no items to sample from")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be 0..{world_size - 1}, got {rank}")
        step = world_size * micro_batch
        if global_batch < 1 or micro_batch < 1 or global_batch % step:
            nearest = max(1, round(global_batch / max(step, 1))) * step
            raise ValueError(
                f"global_batch must be a multiple of world_size * micro_batch = {world_size} * {micro_batch}, "
                f"got {global_batch}; the nearest is {nearest}"
            )
        self.num_items, self.global_batch, self.micro_batch = num_items, global_batch, micro_batch
        self.rank, self.world_size, self.seed, self.shuffle = rank, world_size, seed, shuffle
        self.global_batches = 0

    def advance(self, global_batches: int = 1) -> None:
        """Count the next global batches as trained on."""
        self.global_batches += global_batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = lru_cache(maxsize=2)(self._order)
        share = self.global_batch // self.world_size
        batch = self.global_batches
        while True:
            first = batch * self.global_batch + self.rank * share
            for start in range(first, first + share, self.micro_batch):
                places = (divmod(place, self.num_items) for place in range(start, start + self.micro_batch))
                yield [(epoch, int(order(epoch)[place])) for epoch, place in places]
            batch += 1

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_items)
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_items)

    def state_dict(self) -> dict[str, int | bool]:
        """The position, and what the order depends on."""
        return {
            name: getattr(self, name) for name in ("global_batches", "num_items", "global_batch", "seed", "shuffle")
        }

    def load_state_dict(self, state: dict[str, int | bool]) -> None:
        """Continue at a saved position; the number of processes and the micro-batch may have changed."""
        own = self.state_dict()
        if state.keys() != own.keys():
            raise ValueError(f"a sampler state has the entries {sorted(own)}, got {sorted(state)}")
        changed = [name for name in own if name != "global_batches" and state[name] != own[name]]
        if changed:
            changes = ", ".join(f"{name} was {state[name]} and is {own[name]}" for name in changed)
            raise ValueError(f"the saved position belongs to another order of clips: {changes}")
        self.global_batches = state["global_batches"]


def make_loader(dataset: Dataset, sampler: GlobalBatchSampler | Sequence[Sequence[int]], workers: int) -> DataLoader:
    """The loader of one process: endless batches of a GlobalBatchSampler, or the listed ones.

    A dataset may have a method `collate`, which makes a batch of a list of items.
    """
    return DataLoader(dataset, batch_sampler=sampler, **_loading(dataset, workers))


def make_eval_loader(dataset: Dataset, batch_size: int, workers: int, rank: int = 0, world_size: int = 1) -> DataLoader:
    """One pass over the items rank, rank + world_size, ..., without padding."""
    return DataLoader(dataset, batch_size, sampler=range(rank, len(dataset), world_size), **_loading(dataset, workers))


def _loading(dataset: Dataset, workers: int) -> dict[str, Any]:
    whole = dataset.dataset if isinstance(dataset, Subset) else dataset
    options = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": torch.cuda.is_available()}
    return {**options, "collate_fn": getattr(whole, "collate", None)}


class LoaderError(OSError):
    """Processes that read clips died or hang; the message is one line."""


def batch_timeout(batch: int, read_timeout: float) -> float:
    """The most seconds that a batch of clips can take: `read_timeout` for each, and for all substitutes of one."""
    return (batch + SUBSTITUTES) * read_timeout


def plain_errors(loader: Iterable[Any], timeout: float | None = None) -> Iterator[Any]:
    """The batches of a loader, with one-line messages for errors in its workers.

    Raises ClipError without the worker's traceback; LoaderError when a worker died, or a batch took more than `timeout`
    seconds. The workers are then killed: nothing else stops one that hangs in a decoder, and DataLoader's own timeout
    misses a worker that hangs while it sends a batch.
    """
    batches = iter(loader)
    workers = getattr(batches, "_workers", [])
    _quiet_children()
    while True:
        start, alarm, failed = time.monotonic(), Timer(timeout or 0, _kill, [workers]), True
        alarm.daemon = True
        if timeout is not None and workers:
            alarm.start()
        try:
            batch = next(batches)
            failed = False
        except StopIteration:
            failed = False  # the workers wait for the next pass
            return
        except ClipError as error:
            message = str(error).strip().splitlines()[-1].partition("ClipError: ")[2] or str(error)
            raise ClipError(message) from error.with_traceback(None)
        except (RuntimeError, OSError, EOFError) as error:
            raised_by_worker = "in DataLoader worker process" in str(error)
            if raised_by_worker or not (workers or str(error).startswith("DataLoader ")):
                raise
            if timeout is not None and time.monotonic() - start >= timeout:
                message = f"a process that reads clips hangs: no batch came in {timeout:g} seconds (data.read_timeout)"
            else:
                reason = f"{type(error).__name__} {error}".strip().splitlines()[-1]
                message = f"a process that reads clips died; if memory ran out, use fewer data.num_workers ({reason})"
            raise LoaderError(message) from error.with_traceback(None)
        finally:
            alarm.cancel()
            if failed:  # workers ignore SIGTERM, and a program that ends would wait for them
                _kill(workers)
        yield batch


def _kill(workers: Iterable[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()
        worker.join(5)


def _quiet_children() -> None:
    """Remove torch's signal handler, which raises wherever the program is when a worker dies; loaders notice it too."""
    main = threading.current_thread() is threading.main_thread()  # only it may handle signals
    if main and hasattr(signal, "SIGCHLD"):  # Windows has none
        handler = signal.getsignal(signal.SIGCHLD)
        if getattr(handler, "__module__", "").startswith("torch."):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
