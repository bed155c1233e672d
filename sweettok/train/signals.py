"""Requests from outside to end a run: SIGTERM (preemption, `kill`, a container that is stopped) and SIGINT (Ctrl-C)."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch.utils.data import DataLoader

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class StopRequest:
    """Whether this process was asked to stop."""

    made: bool = False

    def make(self, *_) -> None:
        self.made = True


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Inside, signals only note a request, however often they come; SIGQUIT (Ctrl-\\) still ends the process at once.

    Outside a program's main thread, which alone may handle signals, no request is ever made.
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


def shielded(loader: DataLoader) -> DataLoader:
    """The loader with workers that outlive signals sent to all processes of a run, so that its last step has data."""
    loader.worker_init_fn = _ignore
    return loader


def _ignore(worker: int) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
