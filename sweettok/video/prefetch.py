"""Work that threads do ahead of its use, with results in order."""

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
    """Yield the results of `tasks` in their order; up to `ahead` of them are started before their result is needed.

    Closing the generator waits for running tasks and starts no others, so that their sources can be closed afterwards.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
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
    """Yield the items of an iterator, each made by a thread while the item before it is in use; close it after use."""
    with closing(in_order(repeat(partial(next, items, None)), ahead=1)) as made:
        yield from takewhile(lambda item: item is not None, made)
