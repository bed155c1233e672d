"""Fully sharded data parallelism: every process keeps a slice of each weight, of its average and of its moments.

The launcher asks for it (configs/accelerate/fsdp.yaml), for tasks of one trained module. What is gathered at a
time is an element of an nn.ModuleList named `blocks`; the rest forms one more unit. Nothing but the forwards of
the trained module and of the model gathers weights: elsewhere they are DTensors, slices with the whole shape.

A process builds the whole model on the CPU before it is sliced. Whole weights come together on the main process alone:
in its CPU memory for checkpoints and the export, on its device for samples, which many small forwards draw.
"""

import copy
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.data import Dataset

from sweettok.data.dataset import make_eval_loader
from sweettok.train.config import TrainConfig
from sweettok.train.task import Task

# Layers whose weights autocast rounds.
_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def asked() -> bool:
    """Whether the launcher's configuration asks for sharding, and there are processes to share with."""
    wanted = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return wanted and torch.distributed.is_initialized()


def check(train: TrainConfig) -> None:
    """ValueError for what sharded runs do not do."""
    plugin = FullyShardedDataParallelPlugin()
    wrong = {
        "fsdp_version 1: set it to 2": plugin.fsdp_version != 2,
        "fsdp_offload_params: set it to false": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "fsdp_activation_checkpointing: use train.gradient_checkpointing": plugin.activation_checkpointing,
        "fsdp_auto_wrap_policy, since elements of `blocks` are the units: set NO_WRAP": bool(plugin.auto_wrap_policy),
        "fsdp_ignored_modules: remove it": plugin.ignored_modules is not None,
        "train.mixed_precision=fp16: use bf16 or no": train.mixed_precision == "fp16",
        "train.compile=true: set it to false": train.compile,
    }
    found = [told for told, is_so in wrong.items() if is_so]
    if found:
        raise ValueError(f"fully sharded data parallelism does not go with {'; nor with '.join(found)}")


def sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def shard(task: Task, accelerator: Accelerator) -> nn.Module:
    """Move the trained module to the device in slices, and its optimizer with it; returns a `twin` of the model.

    The device holds one whole unit at a time. ValueError for a task that cannot be sharded.
    """
    if len(task.trained) != 1:
        names = " and ".join(task.trained)
        raise ValueError(
            f"fully sharded data parallelism trains one module, the {task.name} stage has {names}: "
            "use configs/accelerate/ddp.yaml"
        )
    (trained,) = task.trained.values()
    blocks = _blocks(trained.module)
    if not blocks:
        raise ValueError(
            f"fully sharded data parallelism shares out the elements of an nn.ModuleList named `blocks`, and the model "
            f"of the {task.name} stage has none: use configs/accelerate/ddp.yaml"
        )
    weightless = twin(task.model)
    names = {id(param): name for name, param in trained.module.named_parameters()}
    groups = trained.optimizer.param_groups
    held = [[names[id(param)] for param in group["params"]] for group in groups]
    for group in groups:
        group["params"] = []  # or the whole weights would stay in memory
    _slice(blocks, accelerator)
    _settle(trained.module, accelerator.device)
    for module in (task.model, trained.module):
        if not sharded(module):
            fully_shard(module, mesh=_mesh(accelerator))
    sliced = dict(trained.module.named_parameters())
    for group, own in zip(groups, held, strict=True):
        group["params"] = [sliced[name] for name in own]
    # "Evaluation" leaves out accelerate's own wrapper, and only lets the forward run in the configured precision.
    trained.module = accelerator.prepare_model(trained.module, device_placement=False, evaluation_mode=True)
    return weightless


def _mesh(accelerator: Accelerator) -> DeviceMesh:
    return init_device_mesh(accelerator.device.type, (accelerator.num_processes,))


def _slice(blocks: list[nn.Module], accelerator: Accelerator) -> None:
    """Make a unit of each block; in bf16, one of its matrices, which are gathered in bf16, and one of the rest.

    Autocast rounds the matrices anyway; rounding them first halves what is sent, and keeps no rounded copies.
    """
    how = {"mesh": _mesh(accelerator), "reshard_after_forward": FullyShardedDataParallelPlugin().reshard_after_forward}
    low = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        _settle(block, accelerator.device)
        matrices = [layer for layer in block.modules() if isinstance(layer, _MATRICES) and not sharded(layer)]
        if accelerator.mixed_precision == "bf16" and matrices:
            fully_shard(matrices, mp_policy=low, **how)
        if not sharded(block):
            fully_shard(block, **how)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Elements of the lists named `blocks`, inner ones first."""
    lists = [
        part
        for name, part in module.named_modules()
        if isinstance(part, nn.ModuleList) and name.rpartition(".")[2] == "blocks"
    ]
    return [block for part in reversed(lists) for block in part]


@torch.no_grad()
def _settle(module: nn.Module, device: torch.device) -> None:
    """Move what is not in slices yet to the device, with the values of the main process."""
    for tensor in chain(module.parameters(), module.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device).contiguous()
            torch.distributed.broadcast(tensor.data, 0)


# ------------------------------------------------------------------------------------------- slices and whole tensors


def local(tensor: Tensor) -> Tensor:
    """The slice at hand of a sharded tensor, in its memory; another tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, where it lives. Every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(values: Any, keep: bool) -> Any:
    """Dicts and lists with each sharded tensor in them whole, on the CPU, or None on processes that do not `keep` it.

    Every process must call it; a device holds one whole tensor at a time.
    """
    if isinstance(values, Mapping):
        return {key: gather(value, keep) for key, value in values.items()}
    if isinstance(values, list):
        return [gather(value, keep) for value in values]
    if not isinstance(values, DTensor):
        return values
    full = whole(values.detach())
    return full.cpu() if keep else None


def scatter(full: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, as `like` is kept: this process's slice of it, or itself."""
    if not isinstance(like, DTensor):
        return full
    sliced = distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return sliced.clone()  # in memory of its own, so that the rest can go


def scatter_moments(state: Mapping[int, dict[str, Any]], parameters: Sequence[nn.Parameter]) -> dict[int, dict]:
    """`scatter` for an optimizer's state, by the parameters' numbers: what has a parameter's shape is kept as it is."""
    likes = dict(enumerate(parameters))

    def kept(number: int, value: Any) -> Any:
        like = likes.get(number)
        same = isinstance(value, Tensor) and like is not None and value.shape == like.shape
        return scatter(value, like) if same else value

    return {number: {key: kept(number, value) for key, value in entry.items()} for number, entry in state.items()}


# --------------------------------------------------------------------------------------------------- looking at it


def twin(model: nn.Module) -> nn.Module:
    """A copy of a model whose parameters have shapes, but no values and no memory."""
    memo = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


@contextmanager
def stand_in(task: Task, weightless: nn.Module, weights: Mapping[str, Tensor], device: torch.device) -> Iterator[None]:
    """Inside, the task's model is a whole one with `weights`, in eval mode and without mixed precision."""
    plain = copy.deepcopy(weightless)
    kept = plain.state_dict()
    plain.load_state_dict({name: value.to(device, kept[name].dtype) for name, value in weights.items()}, assign=True)
    own, task.model = task.model, plain.to(device).eval()
    try:
        yield
    finally:
        task.model = own


def in_step(batches: Iterable[Any], dataset: Dataset, batch_size: int, world_size: int) -> Iterator[tuple[Any, bool]]:
    """Batches of a `make_eval_loader` and True; then a clip and False, until all processes have had as many."""
    rounds = math.ceil(math.ceil(len(dataset) / world_size) / batch_size)
    for batch in batches:
        rounds -= 1
        yield batch, True
    for _ in range(rounds):
        yield next(iter(make_eval_loader(dataset, 1, workers=0))), False
