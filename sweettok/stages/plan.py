"""Steps, parameters, FLOPs and memory of a training run, computed without weights, clips or devices.

The stage's task is built and run for one micro-batch with FakeTensorMode, on tensors without values (see `SizesOnly`).
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate.utils.operations import convert_outputs_to_fp32
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from sweettok.layers.norm import Norm
from sweettok.stages import STAGES
from sweettok.stages.inputs import SizesOnly
from sweettok.tokenizer.codebook import LanguageCodebook
from sweettok.train.config import RunConfig
from sweettok.train.session import BatchShare
from sweettok.train.sharding import blocks_of

RESERVE = 0.1  # share of a device's memory for its runtime and for fragmentation
NORMS = (nn.LayerNorm, nn.RMSNorm, Norm)
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
aten = torch.ops.aten
# Torch's registry lacks attention on CPUs.
FLOPS = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda *qkv, **_: sdpa_flop_count(*(x.shape for x in qkv[:3])),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *grad, **_: sdpa_backward_flop_count(
        *(x.shape for x in grad[:4])
    ),
}


@dataclass(frozen=True)
class Plan:
    """Cost of a stage; micro-batch and bytes are per device, FLOPs per step of all devices.

    Attributes:
        epochs: None without the list of clips.
        memory: bytes of each part; `activations` is the peak of a micro-batch's forward and backward.
        notes: assumptions that were made.
    """

    stage: str
    steps: int
    share: BatchShare
    devices: int
    clips: int
    epochs: float | None
    tokens_per_clip: int
    trained: dict[str, int]
    frozen: int
    flops: int
    memory: dict[str, int]
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(self.memory.values())


def plan(
    run: RunConfig,
    devices: int = 1,
    memory: float | None = None,
    sharded: bool = False,
    others: Sequence[RunConfig] = (),
) -> Plan:
    """Plan one stage on a number of devices.

    Args:
        memory: bytes of a device; selects the largest micro-batch that fits, instead of the configured one.
        sharded: weights, gradients and optimizer state are sharded over the devices (configs/accelerate/fsdp.yaml).
        others: other planned runs, whose outputs may be inputs of this one.

    Raises ValueError if a batch does not divide, the stage cannot be sharded, or nothing fits.
    """
    models = {Path(run.train.output_dir) / "final": partial(STAGES[run.stage].saved_model, run) for run in others}
    share, inputs = BatchShare.of(run.train, devices, 0), SizesOnly(models)
    with FakeTensorMode(allow_non_fake_inputs=True), CostMode() as mode:
        dry = DryRun(run, inputs, mode, devices, sharded)
        if memory is not None:
            size = largest_batch(dry, share, memory * (1 - RESERVE))
            share = BatchShare.of(replace(run.train, micro_batch_size=size), devices, 0)
        flops, parts = dry.cost(share)
    clips, found = run.train.max_steps * share.global_batch, len(dry.task.train_dataset)
    return Plan(
        stage=run.stage,
        steps=run.train.max_steps,
        share=share,
        devices=devices,
        clips=clips,
        epochs=clips / found if found else None,
        tokens_per_clip=dry.task.tokens_per_clip,
        trained=dry.trained,
        frozen=dry.frozen,
        flops=flops * share.micro_batches * devices,
        memory=parts,
        notes=tuple(dict.fromkeys(inputs.notes)),
    )


def largest_batch(dry: DryRun, share: BatchShare, room: float) -> int:
    """The largest micro-batch that divides a device's clips and fits into `room` bytes; ValueError if none does."""
    clips = share.micro_batch * share.micro_batches

    def needed(size: int) -> int:
        return sum(dry.cost(replace(share, micro_batch=size, micro_batches=clips // size))[1].values())

    sizes = [size for size in range(1, clips + 1) if clips % size == 0]
    fitting = bisect_right(sizes, room, key=needed)
    if not fitting:
        raise ValueError(
            f"not even one clip fits: it needs {needed(1) / 1e9:.1f} GB, and {room / 1e9:.1f} GB are available; try "
            "train.gradient_checkpointing=true, train.mixed_precision=bf16, or more devices with --sharded"
        )
    return sizes[fitting - 1]


class CostMode(TorchDispatchMode):
    """Counts FLOPs, and the bytes of existing tensors that operations created."""

    def __init__(self):
        super().__init__()
        self.now = self.start = self.peak = self.flops = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is aten._local_scalar_dense.default:
            return False  # initialisation branches on a value
        kwargs = kwargs or {}
        if func is aten.index.Tensor and len(args[1]) == 1 and args[1][0].dtype == torch.bool:
            result = args[0].flatten(0, args[1][0].ndim - 1).clone()  # as if a mask selected everything
        else:
            result = func(*args, **kwargs)
        if func.overloadpacket in FLOPS:
            self.flops += FLOPS[func.overloadpacket](*args, **kwargs, out_val=result)
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.layout == torch.strided:
                self.enter(value.untyped_storage())
        return result

    def enter(self, storage: torch.UntypedStorage) -> None:
        """Count a storage, which tensors may share, until it is freed."""
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += self.sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.leave, key)

    def leave(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def reset(self) -> None:
        """Restart counting; `peak - start` is then the peak of bytes beyond those that exist now."""
        self.start = self.peak = self.now
        self.flops = 0


class DryRun:
    """A stage's task without values, to measure the cost of any micro-batch."""

    def __init__(self, run: RunConfig, inputs: SizesOnly, mode: CostMode, devices: int, sharded: bool):
        self.run, self.mode, self.devices, self.sharded = run, mode, devices, sharded
        self.task = STAGES[run.stage](run, inputs)
        groups = self.task.trained
        self.modules = self.task.modules
        for part in (part for module in self.modules for part in module.modules()):
            if isinstance(part, LanguageCodebook) and not part.training:
                part()  # computes the codes that all steps reuse
        self.trained = {name: sum(param.numel() for param in group.parameters) for name, group in groups.items()}
        updated = {id(param) for group in groups.values() for param in group.parameters}
        held = {id(value): value for module in self.modules for value in (*module.parameters(), *module.buffers())}
        held = {key: value for key, value in held.items() if key not in updated}
        self.frozen = sum(value.numel() for value in held.values() if isinstance(value, nn.Parameter))
        sliced = {id(param) for group in groups.values() for param in group.module.parameters()} if sharded else ()
        self.frozen_bytes = sum(value.nbytes // (devices if key in sliced else 1) for key, value in held.items())
        self.dtype = PRECISIONS[run.train.mixed_precision]
        self.units = self._units() if sharded else []
        for group in groups.values():
            for param in group.module.parameters():
                param.grad = torch.zeros_like(param) if param.requires_grad else None
            if self.dtype is not None:
                forward = torch.autocast("cpu", self.dtype)(group.module.forward)
                group.module.forward = convert_outputs_to_fp32(forward)
                for norm in (part for part in group.module.modules() if isinstance(part, NORMS)):
                    # As autocast does on GPUs, but not on CPUs.
                    norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))

    def cost(self, share: BatchShare) -> tuple[int, dict[str, int]]:
        """FLOPs of a micro-batch, forward and backward, and bytes of each part on a device."""
        flops, activations = self.step(share)
        weights, part = 4 * sum(self.trained.values()), self.devices if self.sharded else 1
        state = self.task.model.state_dict().values()
        average = sum(4 * value.numel() if value.dtype.is_floating_point else value.nbytes for value in state)
        memory = {
            "weights": weights // part,
            "gradients": weights // part,
            "moments": 2 * weights // part,
            "average": average // part,
            "frozen": self.frozen_bytes,
            # Once the activations are freed, the optimizer needs the square roots of the second moments.
            "activations": max(activations, 4 * max(self.trained.values()) // part),
        }
        if self.sharded:
            memory["gathered"] = self._gathered()
        return flops, memory

    def step(self, share: BatchShare) -> tuple[int, int]:
        """FLOPs and peak bytes of a micro-batch of the last step, in which all modules are trained."""
        context = share.context(self.run.train.max_steps - 1, self.run.train.seed)
        self.mode.reset()
        batch = self.task.example_batch(share.micro_batch)
        for _, loss, _ in self.task.losses(batch, context):
            (loss / share.micro_batches).backward()
        return self.mode.flops, self.mode.peak - self.mode.start

    def _units(self) -> list[nn.Module]:
        """The blocks that sharding gathers one at a time, with weights converted to the precision of gathering."""
        blocks = [block for group in self.task.trained.values() for block in blocks_of(group.module)]
        if not blocks or len(self.task.trained) != 1:
            raise ValueError(
                f"the {self.run.stage} stage cannot be sharded, which needs one trained module, with blocks: leave "
                "--sharded out"
            )
        for layer in (layer for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)):
            if layer.weight.requires_grad:
                layer.weight = nn.Parameter(layer.weight.detach().to(self.dtype or torch.float32))
        return blocks

    def _gathered(self) -> int:
        """Bytes of gathered weights and gradients: of all outside the blocks, and of two and one block."""
        inside = {id(param) for block in self.units for param in block.parameters()}
        (group,) = self.task.trained.values()
        rest = sum(param.nbytes for param in group.module.parameters() if id(param) not in inside)
        return 2 * rest + 3 * max(sum(param.nbytes for param in block.parameters()) for block in self.units)
