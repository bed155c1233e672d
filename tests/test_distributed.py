"""Processes decide and fail alike. One launch of two does everything."""

import os

import pytest
import torch
import torch.distributed as dist

from sweettok import distributed
from sweettok.distributed import add_up, from_main, gather_objects, gather_rows, main_first, together


class Odd(Exception):
    """Cannot be rebuilt from its arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def fail(error, ranks=(0, 1)):
    if distributed.rank() in ranks:
        raise error
    return distributed.rank()


def raised(work) -> str:
    with pytest.raises(Exception) as info:  # noqa: PT011
        work()
    return f"{type(info.value).__name__}: {info.value}"


def _process(rank, folder):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    order = folder / "order"

    def enter():
        with order.open("a") as file:
            file.write(str(rank))
        return rank

    report = {
        "from main": from_main(lambda: {"rank": rank}),
        "together": together(lambda: rank),
        "main first": main_first(enter),
        "main fails": raised(lambda: from_main(lambda: fail(FileNotFoundError(2, "No such file", "clip.mp4")))),
        "one fails": raised(lambda: together(lambda: fail(ValueError("three is odd"), ranks=(1,)))),
        "both fail": raised(lambda: together(lambda: fail(ValueError(f"of {rank}")))),
        "odd": raised(lambda: together(lambda: fail(Odd(1, 2), ranks=(1,)))),
        "first fails": raised(lambda: main_first(lambda: fail(OSError("disk full"), ranks=(0,)))),
        "objects": gather_objects("ab"[rank]),
        "sum": add_up(torch.tensor([1 + rank, 10])).tolist(),
        "rows": gather_rows(torch.full((2, 1), rank)).flatten().tolist(),
        "still paired": from_main(lambda: "yes"),
    }
    torch.save(report, folder / f"report-{rank}")
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    torch.multiprocessing.spawn(_process, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"report-{rank}", weights_only=True) for rank in (0, 1))
    for name, of_first, of_second in (
        ("from main", {"rank": 0}, {"rank": 0}),
        ("together", 0, 1),
        ("main first", 0, 1),
        ("main fails", *["FileNotFoundError: [Errno 2] No such file: 'clip.mp4'"] * 2),
        ("one fails", *["ValueError: three is odd"] * 2),
        ("both fail", "ValueError: of 0", "ValueError: of 1"),
        ("odd", "RuntimeError: Odd: 1 and 2", "Odd: 1 and 2"),
        ("first fails", *["OSError: disk full"] * 2),
        ("objects", *[["a", "b"]] * 2),
        ("sum", *[[3, 20]] * 2),
        ("rows", *[[0, 0, 1, 1]] * 2),
        ("still paired", "yes", "yes"),
    ):
        assert (first[name], second[name]) == (of_first, of_second), name
    assert (tmp_path / "order").read_text() == "01"


def test_alone():
    assert (distributed.distributed(), distributed.rank(), distributed.world_size()) == (False, 0, 1)
    assert (from_main(lambda: 1), together(lambda: 2), main_first(lambda: 3), gather_objects(4)) == (1, 2, 3, [4])
    for run in (from_main, together, main_first):
        assert raised(lambda run=run: run(lambda: fail(Odd(1, 2)))) == "Odd: 1 and 2"
    ones = torch.ones(2, 1)
    assert add_up(ones) is ones and gather_rows(ones) is ones
