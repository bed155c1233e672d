"""Weights of a tokenizer for another latent grid; for `SweetTok.at_size`."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate

# Parameters with a row for each place of the grid; the size of nothing else depends on it.
PLACE_TABLES = (
    "encoder.temporal_queries",
    "encoder.temporal_positions",
    "decoder.temporal_positions",
    "decoder.positions",
)


def resized(state: dict[str, Tensor], old: tuple[int, int], new: tuple[int, int]) -> dict[str, Tensor]:
    """State of a tokenizer with latent grid `old` (h, w) -> that for grid `new`; the same tensors if they are equal."""
    if old == new:
        return state
    return {**state, **{name: resized_table(state[name], old, new) for name in PLACE_TABLES if name in state}}


def resized_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Table (h w, D) of a grid, row-major -> that of another grid, interpolated bicubically like positions of ViTs."""
    grid = table.float().T.unflatten(1, old)[None]
    return interpolate(grid, size=new, mode="bicubic", antialias=True)[0].flatten(1).T
