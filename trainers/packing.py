"""Rows without padding, and what answers to one prompt have in common only once.

Rows of a batch are laid side by side into one packed row of T tokens. Rows of a group (the answers to one
prompt) share the places of the tokens that they begin with in common. Everything but attention works on the
packed row; attention sees the rows as a grid of B x L cells, padded on the right (packed_attention.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

WORTH = 0.95
"""Of the tokens with padding: a batch that would not shrink below keeps it, for gathering costs time."""

Array = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the tokens of a batch lie in its packed row."""

    ids_T: torch.Tensor
    positions_T: torch.Tensor
    """Of each token in its row, counted from 0."""
    places_BL: torch.Tensor
    """For each cell of the grid its place in the packed row; 0 for padding."""
    cells_T: torch.Tensor
    """For each place the first cell that holds it, in the flattened grid."""
    repeats: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    """Places and the further cells that hold them; within one of these pairs no place comes twice."""

    @property
    def is_grid(self) -> bool:
        """Whether the packed row is the grid itself, padding and all: any other is shorter."""
        return len(self.ids_T) == self.places_BL.numel()

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        repeats = tuple((places.to(device), cells.to(device)) for places, cells in self.repeats)
        return type(self)(
            self.ids_T.to(device),
            self.positions_T.to(device),
            self.places_BL.to(device),
            self.cells_T.to(device),
            repeats,
        )

    def place(self, cells_N: torch.Tensor) -> torch.Tensor:
        """Places of cells of the flattened grid."""
        return self.places_BL.flatten().index_select(0, cells_N)


def pack(rows: Sequence[Sequence[int]], groups: Sequence[Sequence[int]], length: int) -> Packing:
    """Lays out the first `length` tokens of rows, those of each group (row numbers) over each other.

    Two rows share what each has in common with the first of their group. Where all that saves little, the
    packed row is the grid.
    """
    cut = [np.asarray(row[:length], dtype=np.int64) for row in rows]
    shared = [0] * len(rows)
    for first, *others in groups:
        for row in others:
            shared[row] = common_prefix(cut[first], cut[row])
    total = sum(map(len, cut)) - sum(shared)
    if total > WORTH * len(rows) * length:
        return _grid(cut, length)
    places = np.zeros((len(rows), length), dtype=np.int64)
    cells: list[Array] = []
    start = 0
    for group in groups:
        for row in group:
            own = len(cut[row]) - shared[row]
            places[row, : shared[row]] = places[group[0], : shared[row]]
            places[row, shared[row] : len(cut[row])] = np.arange(start, start + own)
            cells.append(row * length + np.arange(shared[row], len(cut[row])))
            start += own
    cells_T = np.concatenate(cells)
    ids_T = np.concatenate([cut[row][shared[row] :] for group in groups for row in group])
    return Packing(
        torch.from_numpy(ids_T),
        torch.from_numpy(cells_T % length),
        torch.from_numpy(places),
        torch.from_numpy(cells_T),
        _repeats(places, shared, groups),
    )


def _grid(rows: Sequence[Array], length: int) -> Packing:
    """Padding is token 0, which no cell attends to."""
    ids = np.zeros((len(rows), length), dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
    cells = torch.arange(ids.size)
    return Packing(torch.from_numpy(ids.ravel()), cells % length, cells.view(ids.shape), cells, ())


def _repeats(
    places: Array, shared: Sequence[int], groups: Sequence[Sequence[int]]
) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """One pair for all second rows of groups, one for all third rows, ..."""
    found = []
    for number in range(1, max(map(len, groups))):
        rows = [group[number] for group in groups if number < len(group)]
        of_rows = [places[row, : shared[row]] for row in rows]
        cells = [row * places.shape[1] + np.arange(shared[row]) for row in rows]
        found.append((torch.from_numpy(np.concatenate(of_rows)), torch.from_numpy(np.concatenate(cells))))
    return tuple(found)


def common_prefix(one: Sequence[int] | Array, other: Sequence[int] | Array) -> int:
    """How many tokens two rows begin with in common."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(np.asarray(one[:length]) != np.asarray(other[:length]))
    return int(differ[0]) if len(differ) else length
