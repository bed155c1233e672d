"""Fully sharded training gives what one process gives, from slices; on the CPU, two processes share the weights."""

import os
import shutil
import socket
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from forks import fork_server
from safetensors.torch import load_file, save_file
from test_train_loop import assert_equal, log_lines, results
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint as recomputed
from toy_task import ToyTask, Vectors, toy_run

from sweettok.train import checkpoint, evaluate, loop, sharding
from sweettok.train.loop import fit
from sweettok.train.session import make_accelerator, start
from sweettok.train.step import Clock, train_step
from sweettok.train.task import Task, TrainedModule

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"max_steps": 4, "save_every": 1, "micro_batch_size": 1, "eval_every": 4, "sample_every": 4}
BF16 = {**SETTINGS, "mixed_precision": "bf16", "sample_every": 0}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}


@pytest.fixture(autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Model(nn.Module):
    """Odd sizes, which do not divide; a frozen parameter; buffers that are saved and not.

    Its blocks are called so, or something else: then it names their class, as models of transformers do.
    """

    _no_split_modules = {"Block"}

    def __init__(self, checkpointing, blocks="blocks"):
        super().__init__()
        self.checkpointing = checkpointing
        self.enter, self.leave = nn.Linear(4, 5), nn.Linear(5, 4)
        self.add_module(blocks, nn.ModuleList(Block(5) for _ in range(3)))
        if blocks == "blocks":
            self._no_split_modules = None
        self.shift = nn.Parameter(torch.randn(5), requires_grad=False)
        self.register_buffer("updates", torch.zeros(()))
        self.register_buffer("scale", torch.full((5,), 0.5), persistent=False)

    def forward(self, x):
        x = self.enter(x) * self.scale + self.shift
        for block in self.blocks if hasattr(self, "blocks") else self.layers:
            x = recomputed(block, x, use_reentrant=False) if self.checkpointing and self.training else block(x)
        return self.leave(x)


class Distance(nn.Module):
    """The trained module is not the model, and has a weight of its own."""

    def __init__(self, model):
        super().__init__()
        self.model, self.tilt = model, nn.Linear(4, 4)

    def forward(self, x, target):
        return (self.tilt(self.model(x)) - target).square().mean(1)


class OneModule(Task):
    name = "one module"

    def __init__(self, run, checkpointing=False, dtype=torch.float64, blocks="blocks"):
        torch.manual_seed(run.train.seed)
        self.model, self.dtype, self.shown = Model(checkpointing, blocks).to(dtype), dtype, []
        module = Distance(self.model).to(dtype)
        # Two groups, not in the order of the module.
        trained = [param for param in module.parameters() if param.requires_grad]
        groups = [{"params": trained[::2], "weight_decay": 0.1}, {"params": trained[1::2], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=0.05, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 - k / 10)
        self.trained = {"generator": TrainedModule("generator", module, optimizer, schedule, max_grad_norm=0.1)}
        self.train_dataset, self.validation_dataset = Vectors(11, seed=1), Vectors(3, seed=2)

    def losses(self, batch, context):
        clip = batch["clip"].to(self.dtype)
        distance = self.trained["generator"].module(clip, clip.roll(1, 1))
        yield "generator", distance.mean(), {"largest": distance.detach().max()}

    def after_step(self, context):
        self.model.updates += 1
        return {}

    def validate(self, batch):
        assert not self.model.training and not torch.is_grad_enabled()
        clip = batch["clip"].to(self.dtype)
        return {"error": (self.model(clip) - clip).square().mean(1)}

    def sample(self, batch):
        """Uses parts of the model, which a sharded one does not gather for."""
        value = self.model.leave(self.model.blocks[0](self.model.scale + self.model.shift)).sum()
        assert not torch.is_grad_enabled() and not self.model.training
        self.shown.append((type(self.model), value))
        return torch.zeros(len(batch["clip"]), 3, 2, 16, 16, dtype=torch.uint8)

    def export(self, folder, training):
        save_file(self.model.state_dict(), folder / "model.safetensors", {"model": type(self.model).__name__})


def begin(task, run):
    session = start(task, run, make_accelerator(run.train))
    return session, iter(loop.make_loader(task.train_dataset, session.state.sampler, 0))


def spawn(*jobs, world_size=2, launcher=FSDP):
    """Each job is a function and its arguments; the processes do one after the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (world_size, port, launcher, jobs)
    torch.multiprocessing.start_processes(_process, arguments, nprocs=world_size, start_method=fork_server())


def _process(rank, world_size, port, launcher, jobs):
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true", **launcher)
    torch.set_num_threads(1)
    for work, *args in jobs:
        AcceleratorState._reset_state(reset_partial_state=True)
        work(*args)
    torch.distributed.destroy_process_group()


# ----------------------------------------------------------------------------------------------- the same results


def train(run, **options):
    fit(OneModule(run, **options), run)


def train_recomputing(run):
    train(run, checkpointing=True)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run of one process."""
    folder = tmp_path_factory.mktemp("one")
    train(toy_run(folder, **SETTINGS))
    return folder


@pytest.fixture(scope="module")
def two(one, tmp_path_factory):
    """What two processes do, with one launch."""
    folder = tmp_path_factory.mktemp("two")
    spawn(
        (train_recomputing, toy_run(folder / "run", **SETTINGS)),
        (train_in_bf16, toy_run(folder / "bf16", **BF16)),
        (look_at_slices, toy_run(folder / "slices", **SETTINGS), one / "checkpoint-2"),
    )
    return folder


def assert_same_run(one, two, steps):
    for step in steps:
        first, second = (folder / f"checkpoint-{step}" for folder in (one, two))
        for name in ("model", "ema", "generator"):
            tensors, others = (load_file(folder / f"{name}.safetensors") for folder in (first, second))
            assert tensors.keys() == others.keys()
            for key, tensor in tensors.items():
                torch.testing.assert_close(tensor, others[key], rtol=0, atol=1e-12, msg=f"{name}: {key}")
        assert_close(*(torch.load(folder / "optimizers.pt", weights_only=True) for folder in (first, second)))
    for mine, other in zip(log_lines(one), log_lines(two), strict=True):
        assert results(mine) == pytest.approx(results(other), rel=1e-6)
    (mine,), (other,) = log_lines(one, "eval/"), log_lines(two, "eval/")
    assert mine["eval/error"] == pytest.approx(other["eval/error"], rel=1e-9)
    assert len(list((two / "samples").iterdir())) == len(list((one / "samples").iterdir())) > 0
    finals = [load_file(folder / "final" / "model.safetensors") for folder in (one, two)]
    assert finals[0].keys() == finals[1].keys()
    torch.testing.assert_close(*finals, rtol=0, atol=1e-12)


def assert_close(one, other):
    """The same structure of plain values, equal but for rounding."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key])
    elif isinstance(one, list):
        for first, second in zip(one, other, strict=True):
            assert_close(first, second)
    elif isinstance(one, torch.Tensor):
        assert type(one) is type(other)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    else:
        assert one == other


def test_sharded_processes_equal_one(one, two):
    """Losses, norms, weights, averages and moments, with accumulation, clipping and gradient checkpointing."""
    folder = two / "run"
    assert_same_run(one, folder, range(1, 5))
    assert [line["train/grad_norm/generator"] > 0.1 for line in log_lines(one)] == [True] * 4

    # What two sharded processes began, one can finish.
    for left in ("checkpoint-3", "checkpoint-4", "final", "samples"):
        shutil.rmtree(folder / left)
    train(toy_run(folder, **SETTINGS))
    assert_same_run(one, folder, (3, 4))


def test_sharded_processes_finish_what_one_began(one, tmp_path):
    shutil.copytree(one, tmp_path / "two")
    for left in ("checkpoint-3", "checkpoint-4", "final", "samples"):
        shutil.rmtree(tmp_path / "two" / left)
    # Of 5 rows, one process has 1 and one has none; of 3 clips to validate on, one has none.
    launcher = {**FSDP, "FSDP_RESHARD_AFTER_FORWARD": "false"}
    spawn((train, toy_run(tmp_path / "two", **SETTINGS)), world_size=4, launcher=launcher)
    assert_same_run(one, tmp_path / "two", (3, 4))


def test_bf16_equals_one_process(two, tmp_path):
    """Sharding gathers matrices in bf16, which is what autocast makes of them, and keeps the rest in float32."""
    train(toy_run(tmp_path, **BF16), dtype=torch.float32, blocks="layers")
    for mine, other in zip(log_lines(tmp_path), log_lines(two / "bf16"), strict=True):
        assert results(mine) == pytest.approx(results(other), rel=1e-5)
    # Validation is in full precision for both.
    (mine,), (other,) = log_lines(tmp_path, "eval/"), log_lines(two / "bf16", "eval/")
    assert mine["eval/error"] == pytest.approx(other["eval/error"], rel=1e-6)
    first, second = (load_file(folder / "checkpoint-4" / "model.safetensors") for folder in (tmp_path, two / "bf16"))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def train_in_bf16(run):
    task, seen = OneModule(run, checkpointing=True, dtype=torch.float32, blocks="layers"), {}

    def note(layer, name):
        if layer.training:
            seen.setdefault(name, set()).add(layer.weight.dtype)

    for name in ("layers.0.norm", "layers.0.up", "leave"):
        task.model.get_submodule(name).register_forward_hook(lambda layer, *_, name=name: note(layer, name))
    fit(task, run)
    assert seen == {"layers.0.norm": {torch.float32}, "layers.0.up": {torch.bfloat16}, "leave": {torch.float32}}
    assert all(isinstance(block, FSDPModule) for block in task.model.layers)
    assert all(param.dtype == torch.float32 for param in task.model.parameters())
    assert task.trained["generator"].module(torch.ones(1, 4), torch.ones(1, 4)).dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------- slices


def test_slices(two):
    """Both processes have looked at them to the end."""
    assert len(list((two / "slices").glob("looked-*"))) == 2


def look_at_slices(run, folder):
    start_differently(run)
    hold_slices(run, folder)
    show(run, folder)
    (Path(run.train.output_dir) / f"looked-{os.environ['RANK']}").touch()


def hold_slices(run, folder):
    """On both processes: nothing that stays in memory is more than this process's half."""
    task = OneModule(run)
    session, batches = begin(task, run)
    state, rank = session.state, session.accelerator.process_index
    checkpoint.load(state, folder)
    train_step(session, batches, Clock())
    trained = task.trained["generator"]
    moments = [value for entry in trained.optimizer.state.values() for value in entry.values() if value.ndim]
    kept = [*trained.module.parameters(), *trained.parameters, *state.ema.shadow.values(), *moments]
    assert len(moments) == 2 * len(trained.parameters)
    for value in kept:
        if value is not state.ema.shadow["updates"]:
            assert isinstance(value, DTensor)
            rows = (len(value) + 1) // 2
            assert value.to_local().untyped_storage().nbytes() <= rows * value[0].numel() * 8
    shadow = sharding.gather(state.ema.shadow)
    assert [name for name, value in shadow.items() if value is not None] == (list(shadow) if rank == 0 else ["updates"])
    before = sharding.gather(task.model.state_dict(), torch.device("cpu"))
    with state.ema.applied(task.model):
        inside = sharding.gather(task.model.state_dict())
        assert_equal(inside, shadow)
    assert_equal(sharding.gather(task.model.state_dict(), torch.device("cpu")), before)


def show(run, folder):
    """A whole copy replaces the model on one process."""
    task = OneModule(run)
    session, _ = begin(task, run)
    checkpoint.load(session.state, folder)
    sharded_model = task.model
    evaluate.write_samples(session, None, Path(run.train.output_dir))
    assert task.model is sharded_model and isinstance(task.model, FSDPModule)
    if session.accelerator.is_main_process:
        plain = Model(False).double().eval()
        plain.load_state_dict(load_file(folder / "ema.safetensors"))
        expected = plain.leave(plain.blocks[0](plain.scale + plain.shift)).sum()
        assert [kind for kind, _ in task.shown] == [Model]
        torch.testing.assert_close(task.shown[0][1], expected)
    else:
        assert task.shown == []
    kinds = []
    evaluate.on_main(session, torch.device("cpu"), lambda: kinds.append(type(task.model)))
    assert kinds == [Model] * session.accelerator.is_main_process


def start_differently(run):
    """The main process's weights are shared out, buffers included, and whole ones are no more."""
    task = OneModule(run)
    expected = {name: value.clone() for name, value in task.model.state_dict().items()}
    if os.environ["RANK"] == "1":
        for value in (*task.model.parameters(), *task.model.buffers()):
            value.data.zero_()
    old = [weakref.ref(param) for param in task.model.parameters()]
    begin(task, run)
    assert not any(param() is not None for param in old)
    assert_equal(sharding.gather(task.model.state_dict(), torch.device("cpu")), expected)
    assert task.model.scale.eq(0.5).all()


def test_an_empty_model_has_no_weights_but_its_buffers():
    model = Model(False)
    weightless = sharding._without_weights(model)
    assert all(param.is_meta for param in weightless.parameters())
    assert [param.requires_grad for param in weightless.parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(weightless.scale, model.scale) and weightless.scale is not model.scale
    assert not any(param.is_meta for param in model.parameters())


# -------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("environment", "settings", "reported"),
    [
        ({"FSDP_VERSION": "1"}, {}, "fsdp_version 1: set it to 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {}, "fsdp_offload_params"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "use train.gradient_checkpointing"),
        ({"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}, {}, "set NO_WRAP"),
        ({"FSDP_IGNORED_MODULES": "head"}, {}, "fsdp_ignored_modules"),
        ({}, {"mixed_precision": "fp16"}, "fp16: use bf16"),
        ({}, {"compile": True}, "train.compile=true"),
    ],
)
def test_what_sharded_runs_do_not_do(tmp_path, monkeypatch, environment, settings, reported):
    for name, value in {**FSDP, **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"fully sharded data parallelism does not support .*{reported}"):
        sharding.check(toy_run(tmp_path, **settings).train)


def test_what_sharded_runs_do(tmp_path, monkeypatch):
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    sharding.check(toy_run(tmp_path, mixed_precision="bf16").train)
    assert not sharding.is_enabled()  # nobody to share with


def test_tasks_that_cannot_be_sharded(tmp_path):
    run = toy_run(tmp_path)
    with pytest.raises(ValueError, match="the toy stage has generator and discriminator: use configs/accelerate/ddp"):
        sharding.shard(ToyTask(run), accelerator=None)
    task = OneModule(run)
    task.model.layers = task.model.blocks
    del task.model.blocks
    with pytest.raises(ValueError, match="one module stage's model has none: use configs/accelerate/ddp"):
        sharding.shard(task, accelerator=None)


# ------------------------------------------------------------------------------------------------------- launching


@pytest.mark.parametrize(("config", "expected"), [("fsdp", "True 2"), ("ddp", "False 2")])
def test_the_launcher_s_configuration_is_used(tmp_path, config, expected):
    script = tmp_path / "reported.py"
    script.write_text(
        "import torch\nfrom accelerate import Accelerator\nfrom sweettok.train import sharding\n"
        "accelerator = Accelerator()\nfrom sweettok.train.config import TrainConfig\n"
        "if sharding.is_enabled(): sharding.check(TrainConfig(output_dir='x'))\n"
        "if accelerator.is_main_process: print(sharding.is_enabled(), accelerator.num_processes)\n"
        "accelerator.wait_for_everyone()\n"  # none leaves while others still connect
        "torch.distributed.destroy_process_group()\n"
    )
    environment = {
        **os.environ,
        "NUM_PROCESSES": "2",
        "OMP_NUM_THREADS": "1",
        "VIRTUAL_ENV": sys.prefix,
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_CONFIG": f"configs/accelerate/{config}.yaml",
    }
    command = ["bash", str(ROOT / "scripts" / "launch.sh"), str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[0] == expected
