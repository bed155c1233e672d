"""Conversion between published weights and ours by tables of names; each model's table is in its `release.py`.

Entries of published files that have no effect on the output are dropped by the import and written with neutral values
by the export. Other missing or unknown entries are errors.
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
    """Names of one kind of published file, as (pattern, replacement) rules for `re.subn`.

    Our name of an entry is changed by the first of `prefixes` that matches its start, then by the first of `parts` that
    matches anywhere.
    """

    prefixes: tuple[tuple[str, str], ...]
    parts: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()  # patterns of published entries that have no effect on the output
    kept_here: tuple[str, ...] = ()  # patterns of our entries that published files do not contain
    halved: str = "$^"  # pattern of our matrices that are the second half of the rows of a published one
    shapes: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = ()  # published names whose shape differs from ours
    # Exported entries -> the dropped entries to write beside them, with neutral values.
    neutral: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda released: {}

    def released_name(self, ours: str) -> str | None:
        """Published name of our state-dict entry; None if there is none. KeyError without a rule."""
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
    """Tensors of a published file (`torch.save`, possibly under a `state_dict` key) or of a mapping of arrays.

    Files are read without running code: objects of other libraries beside the weights (a trainer's settings) become
    empty objects. Raises FileNotFoundError, or ValueError for a file or mapping without weights.
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
    tensors = {}
    for name, value in weights.items():
        try:
            tensors[name] = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"entry {name!r} of the weights is a {type(value).__name__}, not an array") from error
    return tensors


def _load_file(path: Path) -> dict:
    """Content of a file of `torch.save`."""
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        empty = [(type(name.rpartition(".")[2], (Empty,), {}), name) for name in unknown]
        with torch.serialization.safe_globals(empty):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types for other files
        raise ValueError(f"{path} cannot be read as weights: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a mapping of names to tensors")
    return dict(loaded)


class Empty:
    """Replaces a class of another library."""

    def __init__(self, *args, **kwargs): ...

    def __setstate__(self, state): ...


def import_weights(
    ours: Mapping[str, Tensor], released: Mapping[str, Tensor], table: Table, partial: bool = False
) -> dict[str, Tensor]:
    """Published entries under our names and in our shapes.

    Args:
        ours: state dict of the model to fill.
        released: published names -> tensors.
        partial: allow entries to be missing, for files that hold parts of a model.

    Raises ValueError that lists all entries that are missing, unknown or of another shape.
    """
    left = {name for name in released if not any(re.search(pattern, name) for pattern in table.dropped)}
    found, missing, misshapen = {}, [], []
    for name, tensor in ours.items():
        published = table.released_name(name)
        left.discard(published)
        if published not in released:
            missing += [published] if published else []
            continue
        value = released[published].detach()
        if re.search(table.halved, name) and len(value) == 2 * len(tensor):
            value = value.chunk(2)[1]
        if _squeezed(value.shape) != _squeezed(tensor.shape):
            misshapen.append(f"{published}: {tuple(value.shape)} given, {tuple(tensor.shape)} expected")
            continue
        found[name] = value.reshape(tensor.shape).to(tensor.dtype)
    problems = {"missing": [] if partial else missing, "not explained by any table": left, "wrong shape": misshapen}
    listed = [
        f"{problem} ({len(names)}): {', '.join(sorted(names)[:20])}{', ...' if len(names) > 20 else ''}"
        for problem, names in problems.items()
        if names
    ]
    if listed:
        raise ValueError("published weights do not fit this model. " + "; ".join(listed))
    return found


def _squeezed(shape: torch.Size) -> tuple[int, ...]:
    """Sizes other than 1: some published linear layers are 1x1 convolutions, some tables have leading ones."""
    return tuple(size for size in shape if size != 1)


def export_weights(ours: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Copies of our entries under published names and shapes, complete for a strict load by the published code."""
    released = {}
    for name, tensor in ours.items():
        published = table.released_name(name)
        if published is None:
            continue
        value = tensor.detach().cpu().clone()
        if re.search(table.halved, name):
            value = torch.cat((torch.eye(*value.shape, dtype=value.dtype), value))  # the first half has no effect
        for pattern, reshape in table.shapes:
            value = reshape(value) if re.search(pattern, published) else value
        released[published] = value
    return released | table.neutral(released)
