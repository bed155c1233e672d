"""Handling of events that end a run: signals, lost processes, full disks, dead data workers, and hanging steps."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

import torch
from torch.utils.data import DataLoader

from sweettok.data.dataset import LoaderError
from sweettok.distributed import rank
from sweettok.train.checkpoint import describe_latest

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class StopRequest:
    """Whether this process received a signal to stop."""

    made: bool = False

    def make(self, *_) -> None:
        self.made = True


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Inside the block, SIGTERM and SIGINT only set `StopRequest.made`; SIGQUIT (Ctrl-\\) still ends the process.

    Has no effect outside a program's main thread, since only that can handle signals.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.make) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals_in_workers(loader: DataLoader) -> DataLoader:
    """Make the workers ignore signals to all processes of a run, so that its last step still has data."""
    loader.worker_init_fn = _ignore_signals
    return loader


def _ignore_signals(worker: int) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def explained_failures(output_dir: Path) -> Iterator[None]:
    """Inside the block, errors of disks and data workers name the checkpoint from which the run can be resumed.

    Raises ConnectionError if another process of the run ended.
    """
    try:
        yield
    except LoaderError as error:
        raise LoaderError(f"{error}. {describe_latest(output_dir)}") from error
    except OSError as error:
        if error.errno is None:
            raise  # raised by this library, with a complete message
        raise OSError(f"{error}. {describe_latest(output_dir)}") from error
    except RuntimeError as error:
        # Backends raise DistError, except gloo, which is recognised by the text.
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0].partition(". ")[0]
        raise ConnectionError(f"another process of the run ended ({reason}); see its own error message") from error


class Watchdog:
    """Prints all stacks and ends the process with exit status 1 if `progress()` is not called for `seconds`.

    Otherwise, processes that wait for a hanging one would hold their devices for hours.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._signs: SimpleQueue[bool] = SimpleQueue()
        if seconds > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def progress(self) -> None:
        """Restart the time limit."""
        self._signs.put(True)

    def close(self) -> None:
        """Stop watching."""
        self._signs.put(False)

    def _watch(self) -> None:
        try:
            while self._signs.get(timeout=self.seconds):
                pass
        except Empty:
            faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
            message = (
                f"error: no progress for {self.seconds:g} seconds (train.step_timeout); the stacks above show where "
                f"process {rank()} waited. Raise the limit if a step or a validation batch takes longer"
            )
            print(message, file=sys.__stderr__, flush=True)
            os._exit(1)
