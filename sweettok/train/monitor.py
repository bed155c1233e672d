"""Skip steps with non-finite losses or gradients, and end runs after too many of them, bad clips, or a stop request.

In every step, three numbers are summed over the processes on the device: processes with a non-finite loss or gradient,
processes with a stop request, and newly found unreadable clips. The optimizers read on the device whether to skip the
update. The host reads the sums one step later, or when it waits for the device anyway, so that it never delays a step.
All processes read the same sums and so decide alike.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sweettok.distributed import add_up, from_main, gather_objects
from sweettok.train.checkpoint import RunState
from sweettok.train.interrupts import StopRequest

BAD_CLIPS = "bad_clips.txt"
_SHOWN_CLIPS = 20  # clips listed in an error message; the file lists all
_CHECKED = ("loss/", "grad_norm/")  # scalars that must be finite


@dataclass
class StepReport:
    """Scalars and clips of a step on this process."""

    scalars: dict[str, list[Tensor]] = field(default_factory=dict)  # on the device, one for each micro-batch
    learning_rates: dict[str, float] = field(default_factory=dict)
    clips: list[str] = field(default_factory=list)  # names
    problems: list[str] = field(default_factory=list)  # messages about clips that could not be read
    batch: Any = None  # the last micro-batch

    def add(self, name: str, value: Tensor | float) -> None:
        self.scalars.setdefault(name, []).append(torch.as_tensor(value).detach())

    def take(self, batch: Any) -> None:
        """Record a micro-batch."""
        self.batch = batch
        if isinstance(batch, dict):
            self.clips += batch.get("key", [])
            self.problems += [problem for problem in batch.get("problem", []) if problem]


class _Sums(NamedTuple):
    """The sums of one step, which are being copied to the host, and the scalars and clips of this process."""

    step: int
    values: Tensor
    arrived: torch.Event | None  # when the copy is complete; None on a CPU
    scalars: dict[str, list[Tensor]]
    clips: list[str]


class StepMonitor:
    """Every process calls `exchange` in each step and `check` after it.

    lag: steps until the host reads the sums of a step, unless `check` is called with `wait`; 0 on a CPU.
    bad_clips: one line for each clip that could not be read, also in `<output_dir>/bad_clips.txt`.
    """

    def __init__(self, state: RunState, device: torch.device, request: StopRequest):
        self.state, self.device, self.request = state, device, request
        self.lag = int(device.type != "cpu")
        self.path = Path(state.run.train.output_dir) / BAD_CLIPS
        self.bad_clips = from_main(lambda: self.path.read_text("utf-8").splitlines() if self.path.is_file() else [])
        self._known = set(self.bad_clips)
        self._unshared: list[str] = []  # problems found here that are not in `bad_clips` yet
        self._unlisted = 0  # their number on all processes
        self._stopping = False
        self._pending: deque[_Sums] = deque()
        self._check_clips()

    def exchange(self, report: StepReport) -> Tensor:
        """1.0 if the step is to be skipped, else 0.0: a scalar on the device, equal on all processes."""
        checked = [value for name, values in report.scalars.items() if name.startswith(_CHECKED) for value in values]
        failed = ~torch.stack([value.isfinite() for value in checked]).all()
        new = [problem for problem in dict.fromkeys(report.problems) if problem not in self._known]
        self._known.update(new)
        self._unshared += new
        own = (torch.full((), float(number), device=self.device) for number in (self.request.made, len(new)))
        sums = add_up(torch.stack([failed.float(), *own]))
        copied = sums.to("cpu", non_blocking=True)  # into pinned memory
        arrived = torch.Event(self.device.type) if self.device.type != "cpu" else None
        if arrived is not None:
            arrived.record()
        self._pending.append(_Sums(self.state.step + 1, copied, arrived, report.scalars, report.clips))
        return (sums[0] > 0).float()

    def check(self, wait: bool) -> bool:
        """Process the sums of earlier steps, or of all steps if `wait`; returns whether to save and stop.

        Raises:
            FloatingPointError: more than `train.max_skipped_steps` steps in a row were not finite. The file
                `nonfinite-<step>.json` describes the last of them.
            ValueError: more than `train.max_bad_clips` clips could not be read.
        """
        while self._pending and (wait or self._stopping or len(self._pending) > self.lag):
            self._count(self._pending.popleft())
        over = len(self.bad_clips) + self._unlisted > self.state.run.train.max_bad_clips
        if self._unlisted and (wait or self._stopping or over):
            self._list_clips()
        return self._stopping

    def _count(self, sums: _Sums) -> None:
        if sums.arrived is not None:
            sums.arrived.synchronize()
        failed, requests, problems = map(int, sums.values.tolist())
        state = self.state
        state.skipped += failed > 0
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if failed else 0
        if state.skipped_in_a_row > state.run.train.max_skipped_steps:
            raise FloatingPointError(self._describe(sums))
        self._stopping |= requests > 0
        self._unlisted += problems

    def _describe(self, sums: _Sums) -> str:
        """Describe a non-finite step in a file; returns the error message."""
        values = {name: [value.item() for value in values] for name, values in sums.scalars.items()}
        wrong = [name for name, found in values.items() if not all(map(math.isfinite, found))]
        # JSON has no non-finite numbers.
        values = {name: [v if math.isfinite(v) else str(v) for v in found] for name, found in values.items()}
        processes = gather_objects({"clips": sums.clips, "values": values, "not_finite": wrong})
        names = sorted({name for process in processes for name in process.pop("not_finite")})
        row, path = self.state.skipped_in_a_row, self.path.with_name(f"nonfinite-{sums.step}.json")
        content = {"step": sums.step, "skipped_in_a_row": row, "not_finite": names, "processes": processes}
        from_main(lambda: path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8"))
        return (
            f"step {sums.step} is not finite, nor were the {row - 1} before it "
            f"(train.max_skipped_steps={self.state.run.train.max_skipped_steps}): {', '.join(names)}. "
            f"These steps did not change the weights; {path} lists the clips, losses and gradient norms of the last"
        )

    def _list_clips(self) -> None:
        """Gather new problems from all processes and append them to the file."""
        gathered = [problem for part in gather_objects(self._unshared) for problem in part]
        new = [problem for problem in dict.fromkeys(gathered) if problem not in set(self.bad_clips)]
        self._unshared, self._unlisted = [], 0
        self.bad_clips += new
        self._known.update(new)

        def append() -> None:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in new)

        from_main(append)
        self._check_clips()

    def _check_clips(self) -> None:
        limit, count = self.state.run.train.max_bad_clips, len(self.bad_clips)
        if count > limit:
            shown = "".join(f"\n  {line}" for line in self.bad_clips[:_SHOWN_CLIPS])
            raise ValueError(
                f"{count} clips could not be read, more than train.max_bad_clips={limit}. Repair them and delete their "
                f"lines from {self.path}, or raise the limit:{shown}"
                + (f"\n  and {count - _SHOWN_CLIPS} more" if count > _SHOWN_CLIPS else "")
            )


class BufferBackup:
    """Copies of the buffers of modules, such as running statistics, which a forward changes also in a skipped step."""

    def __init__(self, modules: Iterable[nn.Module]):
        modules = list(modules)
        saved = [value for module in modules for value in module.state_dict(keep_vars=True).values()]
        buffers = {id(value): value for value in saved if not isinstance(value, nn.Parameter)}
        norms = [part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)]
        self._buffers = list(buffers.values())
        self._unversioned = {id(value) for norm in norms for value in norm.buffers()}
        self._copies = [buffer.clone() for buffer in self._buffers]
        self._versions: list[int] = []

    @torch.no_grad()
    def save(self) -> None:
        """Copy the buffers."""
        if self._buffers:
            torch._foreach_copy_(self._copies, self._buffers)
        self._versions = [buffer._version for buffer in self._buffers]

    @torch.no_grad()
    def restore(self, skip: Tensor) -> None:
        """Restore changed buffers if `skip`, a scalar on the device, is not 0."""
        for buffer, copy, version in zip(self._buffers, self._copies, self._versions, strict=True):
            if buffer._version != version or id(buffer) in self._unversioned:
                buffer.copy_(torch.where(skip > 0, copy, buffer))
