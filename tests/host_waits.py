"""Counts the places where the host would wait for a device, on any device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Results, or the sizes of results, that the host must know.
ALWAYS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten.is_nonzero,
    aten.bincount,
    aten.unique_dim,
    aten._unique,
    aten._unique2,
    aten.unique_consecutive,
    aten.item,
}


class HostWaits(TorchDispatchMode):
    """Inside, `waits` lists the operations, with the places in the package's code that called them.

    Tensors made of Python numbers (`torch.tensor(...)`) count too: on another device than the CPU they are copied
    there. With `constants=False` they do not.
    """

    def __init__(self, constants: bool = True):
        super().__init__()
        self.constants = constants
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._waits(func, args, kwargs, result):
            self.waits.append(f"{func} in {_caller()}")
        return result

    def _waits(self, func, args, kwargs, result) -> bool:
        packet = func.overloadpacket
        if packet in ALWAYS:
            return True
        if packet in (aten.index, aten.index_put, aten.index_put_):
            return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if packet is aten.repeat_interleave:
            return isinstance(args[0], torch.Tensor) and kwargs.get("output_size") is None
        if packet is aten.lift_fresh:
            return self.constants
        if packet is aten._to_copy:
            return args[0].device != result.device and not kwargs.get("non_blocking")
        if packet is aten.copy_:
            return args[0].device != args[1].device and not (args[2:] or [kwargs.get("non_blocking")])[0]
        return False


def _caller() -> str:
    import traceback

    frames = [frame for frame in traceback.extract_stack() if "/sweettok/" in frame.filename]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "no code of the package"
