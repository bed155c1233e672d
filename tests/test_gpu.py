"""Training steps of every stage on a GPU, where there is one; and, on any machine, that they never wait for it."""

import pytest
import torch
from host_waits import HostWaits
from stages import STAGES, begin, build_task, config_of, first_batch, make_task

from sweettok.train.loop import Clock, train_step

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def batches_of(task, count: int = 4, pin: bool = False):
    """The same batch again and again, which is read before the first step."""
    batch = first_batch(task, count)
    if pin:
        batch = {name: value.pin_memory() if torch.is_tensor(value) else value for name, value in batch.items()}
    while True:
        yield batch


@pytest.mark.parametrize("stage", STAGES)
def test_no_step_waits_for_the_device(runs, stage):
    """Forward and backward passes, updates, averages and the work after a step; not the lines of the log."""
    run = config_of(runs, stage, "train.log_every=100", "train.micro_batch_size=2", "train.global_batch_size=4")
    task = make_task(build_task, run)
    session, _ = begin(task, run)
    batches = batches_of(task, count=2)
    next(batches)

    def step():
        train_step(session, batches, Clock())
        session.monitor.check(wait=False)

    step()  # what is looked up once
    with HostWaits() as counter:
        step()
    assert counter.waits == []


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_three_steps_on_a_gpu(runs, stage, precision):
    """CUDA itself raises where a step would wait."""
    run = config_of(runs, stage, f"train.mixed_precision={precision}", "train.tf32=true", "train.cudnn_benchmark=true")
    task = make_task(build_task, run)
    session, _ = begin(task, run)
    assert session.accelerator.device.type == "cuda" and torch.backends.cudnn.benchmark
    batches, reports = batches_of(task, pin=True), []
    before = [param.clone() for trained in task.trained.values() for param in trained.parameters]
    for number in range(3):
        torch.cuda.set_sync_debug_mode("error" if number else "default")
        try:
            reports.append(train_step(session, batches, Clock()))
            session.monitor.check(wait=False)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for report in reports:
        assert all(value.isfinite() for name, values in report.scalars.items() for value in values if "loss" in name)
    after = [param for trained in task.trained.values() for param in trained.parameters]
    assert not all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
