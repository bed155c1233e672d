"""Work done by threads ahead of its use, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import repeat, takewhile
from typing import TypeVar

Item = TypeVar("Item")


def in_order(tasks: Iterable[Callable[[], Item]], ahead: int, workers: int = 1) -> Generator[Item, None, None]:
    """What the tasks return, one after the other; `ahead` of them are done, or begun, while one's result is in use.

    Closing it waits for the tasks that are under way, and begins no other: what they read from can be closed then.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ahead")
    waiting: deque[Future[Item]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def one_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items, each made on a thread of its own while the one before it is in use; closed as `in_order` is."""
    with closing(in_order(repeat(partial(next, items, None)), ahead=1)) as made:
        yield from takewhile(lambda item: item is not None, made)
