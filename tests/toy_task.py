"""Two trained modules, small enough for exact comparisons: float64, every kind of random draw, a late start."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import nn
from torch.utils.data import Dataset

from sweettok.config import build
from sweettok.stages.proxy import ProxyRun
from sweettok.train.task import Task, TrainedModule

START = 2


class Vectors(Dataset):
    """Clips of four numbers that depend on (seed, epoch, index)."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed

    def __len__(self):
        return self.count

    def __getitem__(self, item):
        epoch, index = item if isinstance(item, tuple) else (0, item)
        generator = torch.Generator().manual_seed(self.seed * 10000 + epoch * 100 + index)
        return {"clip": torch.randn(4, generator=generator, dtype=torch.float64), "key": f"{epoch}/{index}"}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
        self.register_buffer("updates", torch.zeros(()))

    def forward(self, x):
        # Noise on weights, as the word graph's dropout, comes from the default generators.
        weight = nn.functional.dropout(self.layers[0].weight, 0.5, self.training)
        return self.layers[2](torch.tanh(nn.functional.linear(x.to(weight.dtype), weight, self.layers[0].bias)))


class ToyTask(Task):
    name = "toy"

    def __init__(self, run, fail_at: int | None = None, change_loss: Callable | None = None):
        """`change_loss(context, loss)` may return another loss of the generator, or do harm."""
        torch.manual_seed(run.train.seed)
        self.fail_at, self.change_loss, self.calls, self.fed = fail_at, change_loss, 0, []
        self.model = Model().double()
        critic = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        self.trained = {
            "generator": self._trained_module("generator", self.model, torch.optim.SGD, 0, run.train.max_steps),
            "discriminator": self._trained_module(
                "discriminator", critic, torch.optim.AdamW, START, run.train.max_steps
            ),
        }
        self.train_dataset, self.validation_dataset = Vectors(11, seed=1), Vectors(7, seed=2)

    @staticmethod
    def _trained_module(name, module, kind, start, max_steps):
        optimizer = kind(module.parameters(), lr=0.05, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 - k / max_steps)
        return TrainedModule(name, module, optimizer, schedule, max_grad_norm=0.1, start_step=start)

    def losses(self, batch, context):
        self.calls += 1
        if context.step == self.fail_at:
            raise KeyboardInterrupt
        self.fed += batch["key"]
        clip = batch["clip"]
        noise = torch.randn(context.global_batch, 4, generator=context.generator("noise"), dtype=torch.float64)
        fake = self.trained["generator"].module(clip + 0.1 * context.own(noise))
        error = (fake - clip).square().mean()
        loss, report = error, {"error": error.detach()}
        critic = self.trained["discriminator"]
        if context.step >= START:
            critic.bare.requires_grad_(False)
            loss = loss - 0.1 * critic.bare(fake).mean()
            critic.bare.requires_grad_(True)
        yield "generator", self.change_loss(context, loss) if self.change_loss is not None else loss, report
        if context.step >= START:
            yield "discriminator", critic.module(fake.detach()).mean() - critic.module(clip).tanh().mean(), {}

    def after_step(self, context):
        self.model.updates += 1
        return {"updates": self.model.updates}

    def validate(self, batch):
        assert not self.model.training and not torch.is_grad_enabled()
        return {"error": (self.model(batch["clip"]) - batch["clip"]).square().mean(1)}

    def sample(self, batch):
        return torch.zeros(len(batch["clip"]), 3, 2, 16, 16, dtype=torch.uint8)

    def extra_state(self):
        return {"calls": self.calls}

    def load_extra_state(self, state):
        self.calls = state["calls"]

    def export(self, folder: Path, training):
        save_model(self.model, str(folder / "model.safetensors"))


def toy_run(output_dir: Path, **train) -> ProxyRun:
    """A run configuration; the sections of the models stay at their defaults, since the toy reads none of them."""
    defaults = {"max_steps": 6, "global_batch_size": 4, "log_every": 1, "save_every": 3, "eval_every": 3}
    train = {**defaults, "sample_every": 0, "output_dir": str(output_dir), **train}
    data = {name: train.pop(name) for name in ("num_workers", "read_timeout") if name in train}
    return build(ProxyRun, {"data": {"train": "toy", "num_workers": 0, **data}, "train": train})


def spawn_fit(*jobs: tuple[ProxyRun, Callable], world_size: int = 2) -> None:
    """Train on several CPU processes, one job after the other, each on the task that `make(run)` returns.

    What a process raises is written to `<output_dir>/error-<rank>.txt`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_fit_process, (world_size, port, jobs), nprocs=world_size)


def _fit_process(rank: int, world_size: int, port: int, jobs: tuple[tuple[ProxyRun, Callable], ...]) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size)
    )
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    from sweettok.train.loop import fit

    for run, make in jobs:
        try:
            fit(make(run), run)
        except (ValueError, OSError, FloatingPointError) as error:
            (Path(run.train.output_dir) / f"error-{rank}.txt").write_text(str(error))
    torch.distributed.destroy_process_group()


def errors(output_dir: Path) -> list[str]:
    """What each process of a job raised."""
    return [path.read_text() for path in sorted(output_dir.glob("error-*.txt"))]
