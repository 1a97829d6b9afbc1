"""The layout of packed rows, by hand."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.packing import pack

ROWS = [[1, 2, 3, 4], [1, 2, 5], [7], [1, 2, 3, 9]]
GROUPS = [[0, 1, 3], [2]]


def test_packed_by_hand() -> None:
    packing = pack(ROWS, GROUPS, 4)
    # Rows 0, 1 and 3 share [1, 2]; row 3 has the 3 of row 0 as well.
    assert packing.ids_T.tolist() == [1, 2, 3, 4, 5, 9, 7]
    assert packing.positions_T.tolist() == [0, 1, 2, 3, 2, 3, 0]
    assert packing.places_BL.tolist() == [[0, 1, 2, 3], [0, 1, 4, 0], [6, 0, 0, 0], [0, 1, 2, 5]]
    assert packing.cells_T.tolist() == [0, 1, 2, 3, 6, 15, 8]
    repeats = [(places.tolist(), cells.tolist()) for places, cells in packing.repeats]
    assert repeats == [([0, 1], [4, 5]), ([0, 1, 2], [12, 13, 14])]
    assert packing.place(torch.tensor([15, 6])).tolist() == [5, 4]


def test_what_is_only_predicted_is_cut() -> None:
    packing = pack([[1, 2, 3, 4], [1, 5]], [[0, 1]], 3)
    assert packing.ids_T.tolist() == [1, 2, 3, 5]


def test_a_batch_that_saves_little_stays_a_grid() -> None:
    assert not pack([[1, 2, 3], [4, 5]], [[0], [1]], 3).is_grid
    long = list(range(1, 21))
    grid = pack([long, long[1:]], [[0], [1]], 20)
    assert grid.is_grid
    assert grid.ids_T.tolist() == [*long, *long[1:], 0]
    assert grid.positions_T.tolist() == [*range(20), *range(20)]
    assert grid.place(torch.tensor([3, 21])).tolist() == [3, 21]
    assert not pack([[1, 2, 3], [1, 2, 4]], [[0, 1]], 3).is_grid


def test_moved_it_is_the_same() -> None:
    packing = pack(ROWS, GROUPS, 4)
    moved = packing.to(torch.device("cpu"))
    assert moved.ids_T.equal(packing.ids_T)
    assert len(moved.repeats) == len(packing.repeats)


@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=4),
        min_size=1,
        max_size=4,
    )
)
def test_every_cell_finds_its_token_and_every_place_its_cells(grouped: list[list[list[int]]]) -> None:
    rows = [row for group in grouped for row in group]
    numbers = iter(range(len(rows)))
    groups = [[next(numbers) for _ in group] for group in grouped]
    packing = pack(rows, groups, 7)
    if packing.is_grid:
        return
    for row, places_L in zip(rows, packing.places_BL, strict=True):
        assert packing.ids_T[places_L[: len(row)]].tolist() == row
        assert packing.positions_T[places_L[: len(row)]].tolist() == list(range(len(row)))
    first, *further = [packing.cells_T, *(cells for _, cells in packing.repeats)]
    all_cells = torch.cat([first, *further]).tolist()
    real = [number * 7 + at for number, row in enumerate(rows) for at in range(len(row))]
    assert sorted(all_cells) == real
    assert all(len(set(places.tolist())) == len(places) for places, _ in packing.repeats)
