"""What a training will cost, before anything is started: sizes, work and memory of a configuration.

The stage's own task is built and run for one micro-batch on tensors without values or memory (FakeTensorMode), so that
no weights, clips or devices are needed. Inputs that are there give their sizes; for those that are not, another planned
stage speaks that will write them, or else the release's sizes are taken, and a note says so.

Weights, gradients, moments and averages are sums. Activations are the most bytes that one micro-batch holds at once,
forward and backward, in the precisions of a GPU's autocast. A GPU adds its runtime and what its allocator cannot
use, for which `RESERVE` is kept free when a batch is chosen for it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from accelerate.utils.operations import convert_outputs_to_fp32
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from sweettok.layers.attention import Norm
from sweettok.proxy.model import ProxyTokenizer
from sweettok.stages.facts import Facts
from sweettok.stages.generator import GeneratorRun, GeneratorTask
from sweettok.stages.proxy import ProxyRun, ProxyTask
from sweettok.stages.spatial import SpatialRun, SpatialTask
from sweettok.stages.stage1 import Stage1Run, Stage1Task
from sweettok.stages.stage2 import Stage2Run, Stage2Task
from sweettok.tokenizer.codebook import LanguageCodebook
from sweettok.tokenizer.model import SweetTok
from sweettok.train.config import RunConfig
from sweettok.train.session import BatchShare
from sweettok.train.task import Task

RESERVE = 0.1  # share of a device's memory that is left to its runtime and allocator
TASKS = {task.name: task for task in (ProxyTask, SpatialTask, Stage1Task, Stage2Task, GeneratorTask)}
_NORMS = (nn.LayerNorm, nn.RMSNorm, Norm)
_PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Plan:
    """A stage in numbers; bytes and micro-batch are those of one device, FLOPs of a step those of all.

    memory: bytes of each part. epochs: None where the list is not there. notes: what was not known.
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
    """Plan one stage for so many devices.

    Args:
        memory: bytes of a device; the micro-batch is then the largest that fits, instead of the configured one.
        sharded: weights and their like shared out over the devices, as with configs/accelerate/fsdp.yaml.
        others: further stages of the same plan, whose outputs may be this one's inputs.

    Raises ValueError for batches that do not divide, for a stage that cannot be sharded, and where nothing fits.
    """
    share, facts = BatchShare.of(run.train, devices, 0), Facts(run, others)
    with without_memory() as ledger:
        rehearsal = Rehearsal(run, facts, ledger, devices, sharded)
        if memory is not None:
            size = largest_batch(rehearsal, share, memory * (1 - RESERVE))
            share = BatchShare.of(replace(run.train, micro_batch_size=size), devices, 0)
        flops, parts = rehearsal.cost(share)
    clips = run.train.max_steps * share.global_batch
    return Plan(
        stage=run.stage,
        steps=run.train.max_steps,
        share=share,
        devices=devices,
        clips=clips,
        epochs=clips / facts.num_clips if facts.num_clips else None,
        tokens_per_clip=rehearsal.tokens_per_clip,
        trained=rehearsal.trained,
        frozen=rehearsal.frozen,
        flops=flops * share.micro_batches * devices,
        memory=parts,
        notes=tuple(facts.notes),
    )


def largest_batch(rehearsal: Rehearsal, share: BatchShare, room: float) -> int:
    """The largest micro-batch that divides a device's clips and fits. ValueError if none does."""
    clips = share.micro_batch * share.micro_batches

    def needed(size: int) -> int:
        tried = replace(share, micro_batch=size, micro_batches=clips // size)
        return sum(rehearsal.cost(tried)[1].values())

    least = needed(1)
    if least > room:
        raise ValueError(
            f"not even one clip fits: it needs {least / 1e9:.1f} GB of the {room / 1e9:.1f} GB left for it; try "
            "train.gradient_checkpointing=true, train.mixed_precision=bf16, more devices with --sharded, or a smaller "
            "model"
        )
    slope = needed(2) - least if clips > 1 else 0  # memory grows evenly with the batch
    sizes = [size for size in range(1, clips + 1) if clips % size == 0 and least + (size - 1) * slope <= room]
    while needed(sizes[-1]) > room:
        sizes.pop()
    return sizes[-1]


# -------------------------------------------------------------------------------------------------------- rehearsal


def stand_in(run: RunConfig, facts: Facts) -> tuple[Task, Any]:
    """The stage's task, made by its own constructor from sizes instead of files; and the run as it was given to it."""
    if isinstance(run, ProxyRun | Stage2Run):
        network = replace(run.loss.perceptual, untrained=True, weights=None, linear_weights=None)
        run = replace(run, loss=replace(run.loss, perceptual=network))
    elif isinstance(run, Stage1Run):
        run = replace(run, warm_start=False, init=None)
    elif isinstance(run, SpatialRun):
        run = replace(run, warm_start=False)
    else:
        run = replace(run, tokenizer=None, train=replace(run.train, sample_every=0))
    sizes = {
        "read_clips": lambda *_: (range(1), None),
        "read_images": lambda *_: range(1),
        "read_stills": lambda *_: None,
        "read_proxy": lambda *_: ProxyTokenizer(run.tokenizer.proxy),
        "read_prior": lambda *_: facts.prior,
        "read_stage1": lambda *_: SweetTok(replace(facts.tokenizer, pixel_path="expected"), facts.prior),
        "read_tokens": lambda *_: facts.tokens,
    }
    task = type("StandIn", (TASKS[run.stage],), sizes)(run)
    if isinstance(run, GeneratorRun) and facts.tokenizer is not None:
        task.tokenizer = SweetTok(facts.tokenizer, facts.prior).requires_grad_(False)
    return task, run


class Ledger(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, for as long as they live, and the most at once; and FLOPs.

    Tensors without values are taken to hold zeros where values are asked for.
    """

    def __init__(self):
        super().__init__()
        self.now = self.held = self.peak = self.flops = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if isinstance(args[0] if args else None, FakeTensor):
            if func is torch.ops.aten._local_scalar_dense.default:
                return 0.0 if args[0].dtype.is_floating_point else 0
            if func is torch.ops.aten.nonzero.default:
                return args[0].new_empty(0, args[0].ndim, dtype=torch.long)
            if func is torch.ops.aten.index.Tensor and args[1][0].dtype == torch.bool:
                return args[0][:0]
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.layout == torch.strided:
                self.enter(value.untyped_storage())
        return result

    def enter(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is gone; once, however many tensors share it."""
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += self.sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def start(self) -> None:
        """Count FLOPs, and bytes beyond those that are held now, afresh."""
        self.held, self.peak, self.flops = self.now, self.now, 0

    @property
    def most(self) -> int:
        """The most bytes at once since the start, beyond those held then."""
        return self.peak - self.held


@contextmanager
def without_memory() -> Iterator[Ledger]:
    """Inside, new tensors have no values and no memory; the ledger tells what they would take."""
    with FakeTensorMode(allow_non_fake_inputs=True), Ledger() as ledger:
        yield ledger


class Rehearsal:
    """A stage's task without memory, of which any micro-batch can be tried."""

    def __init__(self, run: RunConfig, facts: Facts, ledger: Ledger, devices: int, sharded: bool):
        self.ledger, self.devices, self.sharded = ledger, devices, sharded
        self.task, self.run = stand_in(run, facts)
        self.modules = _modules(self.task)
        for module in self.modules:
            for part in module.modules():
                if isinstance(part, LanguageCodebook):
                    leave_out_graph(part)
                    if not part.training:
                        part()  # once for all steps
        self.trained = {
            name: sum(param.numel() for param in trained.parameters) for name, trained in self.task.trained.items()
        }
        updated = {id(param) for trained in self.task.trained.values() for param in trained.parameters}
        tensors = {id(value): value for module in self.modules for value in _tensors(module)}
        held = [value for value in tensors.values() if id(value) not in updated]
        self.frozen = sum(value.numel() for value in held if isinstance(value, nn.Parameter))
        self.held_bytes = sum(map(_bytes, held))
        self.units = self._units() if sharded else []
        for trained in self.task.trained.values():
            for param in filter(attrgetter("requires_grad"), trained.module.parameters()):
                param.grad = torch.zeros_like(param)
        dtype = _PRECISIONS[run.train.mixed_precision]
        for trained in self.task.trained.values() if dtype is not None else ():
            trained.module.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype)(trained.module.forward))
            for norm in (part for part in trained.module.modules() if isinstance(part, _NORMS)):
                # A GPU's autocast takes norms in float32, where a CPU's leaves them as they are.
                norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))

    @property
    def tokens_per_clip(self) -> int:
        """Words of a clip, or codes of the proxy."""
        model = self.task.model
        if isinstance(model, ProxyTokenizer):
            config = model.config
            return math.prod(config.grid(config.num_frames, config.height, config.width))
        return (model.layout if isinstance(model, SweetTok) else model.sequence.layout).length

    def cost(self, share: BatchShare) -> tuple[int, dict[str, int]]:
        """FLOPs of one micro-batch, forward and backward, and bytes of each part on a device."""
        flops, activations = self.step(share)
        weights = 4 * sum(self.trained.values())
        average = sum(4 * value.numel() if value.dtype.is_floating_point else _bytes(value)
                      for value in self.task.model.state_dict().values())  # fmt: skip
        part = self.devices if self.sharded else 1
        # The update takes the roots of the second moments beside it, when the activations are gone.
        update = 4 * max(self.trained.values()) // part
        memory = {
            "weights": weights // part,
            "gradients": weights // part,
            "moments": 2 * weights // part,
            "average": average // part,
            "frozen": self.held_bytes,
            "activations": max(activations, update),
        }
        if self.sharded:
            memory["gathered"] = self._gathered()
        elif self.devices > 1:
            memory["buckets"] = weights  # in which gradients are exchanged
        return flops, memory

    def step(self, share: BatchShare) -> tuple[int, int]:
        """FLOPs of one micro-batch at the end of the run, when all modules train, and the most bytes that it holds."""
        context = share.context(self.run.train.max_steps - 1, self.run.train.seed)
        self.ledger.start()
        batch = self._batch(share.micro_batch)
        for _, loss, _ in self.task.losses(batch, context):
            (loss / share.micro_batches).backward()
        getattr(self.task, "chosen", []).clear()
        return self.ledger.flops, self.ledger.most

    def _batch(self, size: int) -> dict[str, Tensor]:
        run = self.run
        if isinstance(run, GeneratorRun):
            length = self.task.model.sequence.layout.length
            ids = torch.zeros(size, length, dtype=torch.long)
            return {"ids": ids, "given": ids, "label": torch.zeros(size, dtype=torch.long)}
        config = run.proxy if isinstance(run, ProxyRun) else self.task.model.config
        frames = 1 if isinstance(run, SpatialRun) else config.num_frames
        shape = size, 3, frames, config.height, config.width
        batch = {"video": torch.zeros(shape, dtype=torch.uint8)}
        if isinstance(run, ProxyRun) and run.images:
            batch["image"] = torch.zeros(*shape[:2], 1, *shape[3:], dtype=torch.uint8)
        return batch

    def _units(self) -> list[nn.Module]:
        """The blocks that sharding gathers one by one, their matrices in the precision that they are gathered in."""
        blocks = [block for module in self.modules for name, part in module.named_modules()
                  if name.rpartition(".")[2] == "blocks" for block in part]  # fmt: skip
        if not blocks or len(self.task.trained) != 1:
            raise ValueError(
                f"the {self.run.stage} stage cannot be sharded, which needs one trained module and a model with "
                "blocks: leave --sharded out"
            )
        dtype = _PRECISIONS[self.run.train.mixed_precision] or torch.float32
        for layer in (layer for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)):
            layer.weight = nn.Parameter(layer.weight.detach().to(dtype))
        return blocks

    def _gathered(self) -> int:
        """Whole weights at hand, those outside the blocks and of two blocks, and gradients of the former and of one."""
        inside = {id(param): _bytes(param) for block in self.units for param in block.parameters()}
        (trained,) = self.task.trained.values()
        rest = sum(_bytes(param) for param in trained.module.parameters() if id(param) not in inside)
        return 2 * rest + 3 * max(sum(map(_bytes, block.parameters())) for block in self.units)


def _modules(task: Task) -> list[nn.Module]:
    """The modules that a task moves to its device."""
    own = [value for value in vars(task).values() if isinstance(value, nn.Module)]
    return [*own, *(trained.module for trained in task.trained.values())]


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def leave_out_graph(codebook: LanguageCodebook) -> None:
    """Let a codebook skip the products with its sparse graph, whose work is next to nothing, and keep what it may."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, sources: tuple[Tensor, ...], compute: Callable[[], Tensor]) -> Tensor:
        if name not in kept:
            with torch.no_grad():
                kept[name] = compute()
        return kept[name]

    codebook._keep, codebook.adjacency = keep, lambda: None
    for conv in (codebook.conv1, codebook.conv2):
        conv.forward = lambda x, adjacency, conv=conv: conv.lin(x) + conv.bias


# ------------------------------------------------------------------------------------------------------------ table


def summary(name: str, planned: Plan) -> str:
    """A plan as lines to read."""
    share, devices = planned.share, planned.devices
    clips = " x ".join((f"{devices} devices", f"{share.micro_batches} micro-batches", f"{share.micro_batch} clips"))
    epochs = f"{planned.epochs:,.1f} epochs" if planned.epochs is not None else "epochs unknown"
    trained = ", ".join(f"{name} {size / 1e6:,.1f}M" for name, size in planned.trained.items())
    parts = ", ".join(f"{part} {size / 1e9:,.2f}" for part, size in planned.memory.items())
    rows = {
        "steps": f"{planned.steps:,} of {share.global_batch:,} clips: {clips}",
        "seen": f"{planned.clips:,} clips ({epochs}), {planned.clips * planned.tokens_per_clip:.4g} tokens "
        f"({planned.tokens_per_clip:,} a clip)",
        "trained": trained,
        "frozen": f"{planned.frozen / 1e6:,.1f}M",
        "work": f"{planned.flops / 1e12:,.4g} TFLOP a step, {planned.flops / share.global_batch / 1e12:,.4g} a clip, "
        f"{planned.flops * planned.steps:.3g} FLOP in all",
        "memory": f"{planned.bytes / 1e9:,.2f} GB a device: {parts}",
    }
    lines = [f"{name}: {planned.stage}", *(f"  {label:8} {text}" for label, text in rows.items())]
    return "\n".join([*lines, *(f"  note: {note}" for note in planned.notes)])
