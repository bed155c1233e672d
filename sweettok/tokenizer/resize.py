"""Weights of a tokenizer for another grid of latent places; for `SweetTok.at_size`."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate

# Parameters with a row for each place of the grid. Nothing else has a size that depends on it.
PLACE_TABLES = (
    "encoder.temporal_queries", "encoder.temporal_positions", "decoder.temporal_positions", "decoder.positions",
)  # fmt: skip


def resized(state: dict[str, Tensor], old: tuple[int, int], new: tuple[int, int]) -> dict[str, Tensor]:
    """State of a tokenizer of latent grid `old` (h, w) -> that of `new`; of one grid, the very same tensors."""
    if old == new:
        return state
    return {**state, **{name: resized_table(state[name], old, new) for name in PLACE_TABLES if name in state}}


def resized_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Rows (h w, D) of a grid's places, row-major -> those of another grid; bicubic, as positions of ViTs are."""
    grid = table.float().T.unflatten(1, old)[None]
    return interpolate(grid, size=new, mode="bicubic", antialias=True)[0].flatten(1).T
