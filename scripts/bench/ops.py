"""Time of every operation of a pass, by group, and by the line of the package that calls it."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mkldnn_linear", "_addmm_activation"}
OTHERS = ("convolution", "other")  # whose operations are listed


def group_of(name: str) -> str:
    """The group of an operation."""
    if name in PRODUCTS:
        return "matrix products"
    return "attention" if "scaled_dot_product" in name else "convolution" if "convolution" in name else "other"


def calling_line() -> str:
    """The innermost line of the package that runs now; for a backward pass the one that started it; "-" if none."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "sweettok" in path.parts:
            return f"{path.parent.name}/{path.name}:{frame.f_lineno}"
        frame = frame.f_back
    return "-"


class OpTimes(TorchDispatchMode):
    """Inside this context, counts the seconds of every operation, by (group, operation, line).

    Operations are the basic ones that PyTorch has reduced a pass to. The device is synchronized after each; on a CPU
    the seconds are those of the process, which other load on the machine affects less.
    """

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.clock = device, time.process_time if device.type == "cpu" else time.perf_counter
        self.seconds: Counter[tuple[str, str, str]] = Counter()
        self.calls: Counter[tuple[str, str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        start = self.clock()
        result = func(*args, **(kwargs or {}))
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize()
        name = func.overloadpacket.__name__
        key = group_of(name), name, calling_line()
        self.seconds[key] += self.clock() - start
        self.calls[key] += 1
        return result

    def table(self, rows: int = 12, steps: int = 1) -> str:
        """Seconds and share of every group, for one of `steps`, and the largest outside products and attention."""
        total, groups = sum(self.seconds.values()), Counter()
        for (group, *_), seconds in self.seconds.items():
            groups[group] += seconds
        lines = [f"  {name:16} {value / steps:8.3f} s {value / total:6.1%}" for name, value in groups.most_common()]
        listed = Counter({key: seconds for key, seconds in self.seconds.items() if key[0] in OTHERS})
        for key, seconds in listed.most_common(rows):
            calls = f"{self.calls[key] / steps:5.0f} x {key[1]:26} {key[2]}"
            lines.append(f"    {seconds / steps:8.4f} s {seconds / total:6.1%} {calls}")
        return "\n".join(lines)
