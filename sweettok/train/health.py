"""What keeps a step from counting, or ends a run: numbers that are not finite, clips that cannot be read, signals.

In every step each process votes: whether its losses and gradients are finite, how many unreadable clips are new, and
whether it was asked to stop. The votes are added up on the device, where the optimizers see whether to update. The host
reads the sum a step later, by when the device has it, or whenever it waits for the device anyway: it is never kept from
queueing the next step. All processes read the same sum of the same step, and so do the same.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sweettok.train.checkpoint import RunState
from sweettok.train.signals import StopRequest

if TYPE_CHECKING:
    from sweettok.train.session import StepReport

BAD_CLIPS = "bad_clips.txt"
_TOLD = 20  # clips that an error lists; the file has all


@dataclass
class _Ballot:
    """The votes of one step on their way to the host, and what they were about."""

    step: int
    sums: Tensor
    arrived: torch.Event | None
    report: dict[str, list[Tensor]]
    clips: list[str]

    def read(self) -> tuple[int, int, int]:
        if self.arrived is not None:
            self.arrived.synchronize()
        failed, requests, problems = self.sums.tolist()
        return int(failed), int(requests), int(problems)


class Health:
    """The votes of a run. Every process calls `vote` in each step and `look` after it.

    lag: steps until the host reads a vote without being told to wait; none where the device is the host.
    bad_clips: one line for each clip that could not be read, also in `<output_dir>/bad_clips.txt`.
    """

    def __init__(self, state: RunState, device: torch.device, main: bool, request: StopRequest):
        self.state, self.device, self.main, self.request = state, device, main, request
        self.lag = int(device.type != "cpu")
        self.output_dir = Path(state.run.train.output_dir)
        path = self.output_dir / BAD_CLIPS
        self.bad_clips = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self._known = set(self.bad_clips)
        self._unshared: list[str] = []  # problems that other processes have not been told of
        self._unlisted = 0  # such problems of all processes, as counted by votes
        self._stopping = False
        self._pending: deque[_Ballot] = deque()
        self.check_clips()

    def vote(self, report: StepReport) -> Tensor:
        """1.0 if the step must change nothing, else 0.0: a scalar on the device, equal on all processes."""
        vital = [value for name, values in report.scalars.items() if name.startswith(_VITAL) for value in values]
        failed = ~torch.stack([value.isfinite() for value in vital]).all()
        new = [problem for problem in dict.fromkeys(report.problems) if problem not in self._known]
        self._known.update(new)
        self._unshared += new
        own = (torch.full((), float(number), device=self.device) for number in (self.request.made, len(new)))
        votes = torch.stack([failed.float(), *own])
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(votes)
        sums = votes.to("cpu", non_blocking=True)  # into pinned memory
        arrived = torch.Event(self.device.type) if self.device.type != "cpu" else None
        if arrived is not None:
            arrived.record()
        self._pending.append(_Ballot(self.state.step + 1, sums, arrived, report.scalars, report.clips))
        return (votes[0] > 0).float()

    def look(self, wait: bool) -> bool:
        """Act on the votes that are due, or on all if `wait`; returns whether to save and stop.

        FloatingPointError after more than `train.max_skipped_steps` steps in a row were not finite, with a report of
        the last in `nonfinite-<step>.json`. ValueError when there are more than `train.max_bad_clips` clips to tell of.
        """
        while self._pending and (wait or self._stopping or len(self._pending) > self.lag):
            self._count(self._pending.popleft())
        over = len(self.bad_clips) + self._unlisted > self.state.run.train.max_bad_clips
        if self._unlisted and (wait or self._stopping or over):
            self._list_clips()
        return self._stopping

    def check_clips(self) -> None:
        """ValueError if more clips could not be read than the configuration allows."""
        limit, count = self.state.run.train.max_bad_clips, len(self.bad_clips)
        if count > limit:
            shown = "".join(f"\n  {line}" for line in self.bad_clips[:_TOLD])
            raise ValueError(
                f"{count} clips could not be read, more than train.max_bad_clips={limit}. Repair them and delete their "
                f"lines from {self.output_dir / BAD_CLIPS}, or raise the limit:{shown}"
                + (f"\n  and {count - _TOLD} more" if count > _TOLD else "")
            )

    def _count(self, ballot: _Ballot) -> None:
        failed, requests, problems = ballot.read()
        state = self.state
        state.skipped += failed > 0
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if failed else 0
        if state.skipped_in_a_row > state.run.train.max_skipped_steps:
            raise FloatingPointError(self._describe(ballot))
        self._stopping |= requests > 0
        self._unlisted += problems

    def _describe(self, ballot: _Ballot) -> str:
        """Write what is known of a step that was not finite, on one process; returns what to tell."""
        values = {name: [value.item() for value in values] for name, values in ballot.report.items()}
        parts = gather_object([{"clips": ballot.clips, "values": values}])
        path = self.output_dir / f"nonfinite-{ballot.step}.json"
        wrong = sorted(
            {name for part in parts for name, found in part["values"].items() if not all(map(math.isfinite, found))}
        )
        if self.main:
            told = {"step": ballot.step, "skipped_in_a_row": self.state.skipped_in_a_row, "not_finite": wrong}
            for part in parts:  # JSON has no word for what is not finite
                part["values"] = {
                    name: [value if math.isfinite(value) else str(value) for value in found]
                    for name, found in part["values"].items()
                }
            path.write_text(json.dumps({**told, "processes": parts}, indent=2) + "\n", encoding="utf-8")
        return (
            f"step {ballot.step} is not finite, nor were the {self.state.skipped_in_a_row - 1} before it "
            f"(train.max_skipped_steps={self.state.run.train.max_skipped_steps}): {', '.join(wrong)}. "
            f"No such step changed the weights; {path} has its clips, losses and gradient norms"
        )

    def _list_clips(self) -> None:
        """Share new problems among the processes, and add them to the file."""
        gathered, before = gather_object(self._unshared), set(self.bad_clips)
        new = [problem for problem in dict.fromkeys(gathered) if problem not in before]
        self._unshared, self._unlisted = [], 0
        self.bad_clips += new
        self._known.update(new)
        if self.main and new:
            with (self.output_dir / BAD_CLIPS).open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in new)
        self.check_clips()


_VITAL = ("loss/", "grad_norm/")


class Buffers:
    """State of modules that is no weight, as running statistics: forwards change it before a step is known to count."""

    def __init__(self, modules: Iterable[nn.Module]):
        modules = list(modules)
        saved = [value for module in modules for value in module.state_dict(keep_vars=True).values()]
        buffers = {id(value): value for value in saved if not isinstance(value, nn.Parameter)}
        norms = [part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)]
        self._buffers = list(buffers.values())
        self._silent = {id(value) for norm in norms for value in norm.buffers()}  # their versions do not count
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._versions: list[int] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Remember all values."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)
        self._versions = [buffer._version for buffer in self._buffers]

    @torch.no_grad()
    def restore(self, skip: Tensor) -> None:
        """Give what has changed its remembered value again if `skip`, a scalar on the device, is not 0."""
        for buffer, kept, version in zip(self._buffers, self._kept, self._versions, strict=True):
            if buffer._version != version or id(buffer) in self._silent:
                buffer.copy_(torch.where(skip > 0, kept, buffer))
