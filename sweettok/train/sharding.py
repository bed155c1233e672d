"""Fully sharded data parallelism (FSDP2): every process keeps a slice of each weight, its average and its moments.

It is switched on by the launcher's configuration (configs/accelerate/fsdp.yaml). Blocks are gathered one at a time: the
elements of every nn.ModuleList named `blocks`, and what a model of transformers names in `_no_split_modules`. A whole
model exists on the CPU before it is sharded, and on the device during validation and sampling.

accelerate's configuration is read, but its preparation is not used: it does nothing for processes on CPUs, and its
mixed precision also rounds norms and biases to bf16.
"""

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from sweettok.distributed import distributed, rank
from sweettok.train.config import TrainConfig
from sweettok.train.muon import Muon
from sweettok.train.task import Task

_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # layers whose weights autocast rounds


def is_enabled() -> bool:
    """Whether the launcher's configuration selects sharding, and there are several processes."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and distributed()


def check(train: TrainConfig) -> None:
    """Raise ValueError for settings that sharded runs do not support."""
    plugin = FullyShardedDataParallelPlugin()
    for text, is_so in {
        "fsdp_version 1: set it to 2": plugin.fsdp_version != 2,
        "fsdp_offload_params: set it to false": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "fsdp_activation_checkpointing: use train.gradient_checkpointing": plugin.activation_checkpointing,
        "fsdp_auto_wrap_policy, since elements of `blocks` are the units: set NO_WRAP": bool(plugin.auto_wrap_policy),
        "fsdp_ignored_modules: remove it": plugin.ignored_modules is not None,
        "train.mixed_precision=fp16: use bf16 or no": train.mixed_precision == "fp16",
        "train.compile=true: set it to false": train.compile,
    }.items():
        if is_so:
            raise ValueError(f"fully sharded data parallelism does not support {text}")


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def shard(task: Task, accelerator: Accelerator) -> nn.Module:
    """Shard the only trained module and its optimizer on the device; returns a copy of the model without weights.

    Raises ValueError for a task that cannot be sharded.
    """
    need, advice = "fully sharded data parallelism needs", "use configs/accelerate/ddp.yaml"
    if len(task.trained) != 1:
        raise ValueError(f"{need} one trained module, the {task.name} stage has {' and '.join(task.trained)}: {advice}")
    (trained,) = task.trained.values()
    if isinstance(trained.optimizer, Muon):
        raise ValueError(f"{need} optimizer.kind=adamw, as Muon needs whole matrices: {advice}")
    blocks = list(blocks_of(trained.module))
    if not blocks:
        raise ValueError(f"{need} an nn.ModuleList named `blocks`, the {task.name} stage's model has none: {advice}")
    empty_model = _without_weights(task.model)
    names = {id(param): name for name, param in trained.module.named_parameters()}
    groups = trained.optimizer.param_groups
    names_of_groups = [[names[id(param)] for param in group.pop("params")] for group in groups]
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    options = {"mesh": mesh, "reshard_after_forward": FullyShardedDataParallelPlugin().reshard_after_forward}
    # Matrices are gathered in bf16, to which autocast rounds them anyway: half the traffic, and no rounded copies.
    low = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in reversed(blocks):  # inner ones first
        _distribute(block, accelerator.device)
        matrices = [layer for layer in block.modules() if isinstance(layer, _MATRICES) and not is_sharded(layer)]
        if accelerator.mixed_precision == "bf16" and matrices:
            fully_shard(matrices, mp_policy=low, **options)
        if not is_sharded(block):
            fully_shard(block, **options)
    _distribute(trained.module, accelerator.device)
    for module in (task.model, trained.module):
        if not is_sharded(module):
            fully_shard(module, mesh=mesh, reshard_after_forward=False)
    sliced = dict(trained.module.named_parameters())
    for group, own in zip(groups, names_of_groups, strict=True):
        group["params"] = [sliced[name] for name in own]
    # evaluation_mode: only autocast of the forward, without accelerate's wrapper.
    trained.module = accelerator.prepare_model(trained.module, device_placement=False, evaluation_mode=True)
    return empty_model


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """The parts of a trained module that are gathered one at a time, outer ones first."""
    names: set[str] = set()  # of classes
    for name, part in model.named_modules():
        names.update(getattr(part, "_no_split_modules", None) or ())
        if type(part).__name__ in names:
            yield part
        elif name.rpartition(".")[2] == "blocks":
            yield from part.children()


@torch.no_grad()
def _distribute(module: nn.Module, device: torch.device) -> None:
    """Move tensors that are not sharded yet to the device, with the values of the main process."""
    for tensor in chain(module.parameters(), module.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device).contiguous()
            torch.distributed.broadcast(tensor.data, 0)


def local(tensor: Tensor) -> Tensor:
    """This process's slice of a sharded tensor, sharing memory; other tensors unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, on its device; other tensors unchanged. Every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(values: Any, device: torch.device | None = None) -> Any:
    """Nested dicts and lists with every sharded tensor replaced by the whole one. Every process must call it.

    Without a `device`, whole tensors are on the CPU of the main process, and None on the other processes.
    """

    def kept(tensor: DTensor) -> Tensor | None:
        full = whole(tensor.detach())
        return full.to(device) if device is not None else full.cpu() if rank() == 0 else None

    return tree_map_only(DTensor, kept, values)


def like(target: Any, value: Any) -> Any:
    """`value`, sharded like `target` if that is a sharded tensor of the same shape."""
    if not isinstance(target, DTensor) or not isinstance(value, Tensor) or value.shape != target.shape:
        return value
    sliced = distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    return sliced.clone()  # so that the memory of the whole tensor is freed


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy whose parameters are on the meta device."""
    memo = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


@contextmanager
def whole_model(task: Task, empty_model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block, the task's model is a whole one with `weights`, in eval mode and full precision."""
    model, sharded_model = copy.deepcopy(empty_model), task.model
    dtypes = {name: value.dtype for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.to(dtypes[name]) for name, value in weights.items()}, assign=True)
    device = next(iter(weights.values())).device
    task.model = model.to(device).eval()
    try:
        yield
    finally:
        task.model = sharded_model
