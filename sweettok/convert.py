"""Published weights <-> ours, through tables of names; each model's table stands in its `release.py`.

Entries that published files hold without any effect on the output are dropped on the way in, and written with neutral
values on the way out; anything else that is missing or left over is an error that lists it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Table:
    """Names of one kind of published file, as (pattern, name) rules for `re.subn`.

    An entry of ours is renamed by the first of `prefixes` that matches its start, then by the first of `parts` that
    matches anywhere.
    """

    prefixes: tuple[tuple[str, str], ...]
    parts: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()  # patterns of published entries without effect on the output
    kept_here: tuple[str, ...] = ()  # patterns of our entries that published files do not hold
    halved: str = "$^"  # pattern of our matrices that are the second half of the rows of published ones
    shapes: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = ()  # published names whose shape is another there
    # Published entries -> the dropped ones beside them, with neutral values.
    neutral: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda released: {}

    def released_name(self, ours: str) -> str | None:
        """Published name of our state-dict entry; None where published files have none. KeyError without a rule."""
        if any(re.search(pattern, ours) for pattern in self.kept_here):
            return None
        renamed = _renamed(ours, self.prefixes, "^")
        if renamed is None:
            raise KeyError(f"no published name for {ours!r}")
        return _renamed(renamed, self.parts) or renamed


def _renamed(name: str, rules: tuple[tuple[str, str], ...], start: str = "") -> str | None:
    for pattern, new in rules:
        renamed, matches = re.subn(start + pattern, new, name)
        if matches:
            return renamed
    return None


def read_weights(weights: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """Published entries from a file (`torch.save`, possibly under a `state_dict` key) or a mapping of arrays.

    Files are read with `weights_only=True`; classes of other libraries found beside the weights (a trainer's settings)
    are replaced by empty classes. Raises FileNotFoundError, or ValueError when no weights are found.
    """
    if isinstance(weights, str | Path):
        path = Path(weights)
        if not path.is_file():
            raise FileNotFoundError(f"no weights at {path}")
        weights = _load_file(path)
    if not isinstance(weights, Mapping):
        raise ValueError(f"weights must be a file or a mapping of names to arrays, got {type(weights).__name__}")
    if isinstance(weights.get("state_dict"), Mapping):
        weights = weights["state_dict"]
    if not weights:
        raise ValueError("the weights hold no entries")
    return {name: _as_tensor(name, value) for name, value in weights.items()}


def _as_tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"entry {name!r} of the weights is no array but a {type(value).__name__}") from error


def _load_file(path: Path) -> dict:
    """Content of a file of `torch.save`, read without running anything. ValueError where it is none."""
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        empty = [(type(name.rpartition(".")[2], (Empty,), {}), name) for name in unknown]
        with torch.serialization.safe_globals(empty):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for files that are not what they should be
        raise ValueError(f"{path} cannot be read as weights: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a mapping of names to tensors")
    return dict(loaded)


class Empty:
    """Replaces a class that is not needed to read weights, and does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def import_weights(
    ours: Mapping[str, Tensor], released: Mapping[str, Tensor], table: Table, partial: bool = False
) -> dict[str, Tensor]:
    """Published entries under our names, in our shapes.

    Args:
        ours: the state dict to be filled.
        released: published names -> tensors.
        partial: entries may be missing (a file of pretrained parts); none may be left over.

    Raises ValueError that lists every missing, unexplained and misshapen entry.
    """
    left = {name for name in released if not any(re.search(pattern, name) for pattern in table.dropped)}
    found, missing, misshapen = {}, [], []
    for name, tensor in ours.items():
        theirs = table.released_name(name)
        if theirs is None:
            continue
        left.discard(theirs)
        if theirs not in released:
            missing.append(theirs)
            continue
        value = released[theirs].detach()
        if re.search(table.halved, name) and len(value) == 2 * len(tensor):
            value = value.chunk(2)[1]
        if _squeezed(value.shape) != _squeezed(tensor.shape):
            misshapen.append(f"{theirs}: {tuple(value.shape)} given, {tuple(tensor.shape)} expected")
            continue
        found[name] = value.reshape(tensor.shape).to(tensor.dtype)
    problems = {"missing": [] if partial else missing, "not explained by any table": left, "wrong shape": misshapen}
    listed = [
        f"{what} ({len(names)}): {', '.join(sorted(names)[:20])}{', ...' if len(names) > 20 else ''}"
        for what, names in problems.items()
        if names
    ]
    if listed:
        raise ValueError("published weights do not fit this model. " + "; ".join(listed))
    return found


def _squeezed(shape: torch.Size) -> tuple[int, ...]:
    """Published files keep some linear layers as 1x1 convolutions and some tables with leading ones."""
    return tuple(size for size in shape if size != 1)


def export_weights(ours: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Our entries under published names and shapes, in memory of their own, complete for a strict load elsewhere."""
    released = {}
    for name, tensor in ours.items():
        theirs = table.released_name(name)
        if theirs is None:
            continue
        value = tensor.detach().cpu().clone()
        if re.search(table.halved, name):
            value = torch.cat((torch.eye(*value.shape, dtype=value.dtype), value))  # the first half has no effect
        for pattern, reshape in table.shapes:
            value = reshape(value) if re.search(pattern, theirs) else value
        released[theirs] = value
    return released | table.neutral(released)
