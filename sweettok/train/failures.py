"""What ends a run from outside, told in one line: data workers, disks and processes that are lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sweettok.data.dataset import LoaderError
from sweettok.train.checkpoint import what_is_left


@contextmanager
def told(output_dir: Path) -> Iterator[None]:
    """Inside, errors of the system, as on a full disk, and of data workers get from where the run goes on.

    ConnectionError where another process of the run is gone: that one says why.
    """
    try:
        yield
    except LoaderError as error:
        raise LoaderError(f"{error}. {what_is_left(output_dir)}") from error
    except OSError as error:
        if error.errno is None:
            raise  # one of our own, which is complete
        raise OSError(f"{error}. {what_is_left(output_dir)}") from error
    except RuntimeError as error:
        # Backends have errors of their own, but gloo, of which only the text tells.
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0].partition(". ")[0]
        raise ConnectionError(f"another process of the run is gone, and said why ({reason})") from error
