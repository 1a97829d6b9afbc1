"""Rooms do not overlap, and all memory comes back."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from rm_server.arena import ALIGNMENT, Arena, Room

CPU = torch.device("cpu")


def test_a_room_holds_copies_and_sends_the_rest_to_the_heap() -> None:
    room = Arena(4 * 128, CPU).cut(4 * 100)
    assert room is not None
    tensors = [torch.full((5, 10), float(k)) for k in range(3)]
    copies = [room.put(tensor) for tensor in tensors]
    for tensor in tensors:
        tensor.zero_()
    assert [copy.unique().tolist() for copy in copies] == [[0.0], [1.0], [2.0]]
    assert copies[1].data_ptr() == copies[0].data_ptr() + copies[0].nbytes


def test_nothing_can_be_cut_from_nothing() -> None:
    assert Arena(0, CPU).cut(1) is None


def test_the_first_place_that_fits_is_used_again() -> None:
    arena = Arena(3 * ALIGNMENT, CPU)

    def address() -> int:
        room = arena.cut(ALIGNMENT)
        assert room is not None
        return room.put(torch.zeros(ALIGNMENT, dtype=torch.uint8)).data_ptr()

    first, again = address(), address()
    assert first == again


@given(st.lists(st.one_of(st.integers(1, 700), st.integers(-5, -1)), max_size=60))
def test_rooms_never_overlap_and_everything_comes_back(steps: list[int]) -> None:
    """A number above 0 cuts a room of so many bytes; one below lets go of the room that is so far from
    last.
    """
    arena = Arena(2048, CPU)
    rooms: list[tuple[Room, torch.Tensor, int]] = []
    for step, size in enumerate(steps):
        if size < 0:
            rooms[size:] = rooms[size:][1:]
        elif (room := arena.cut(size)) is not None:
            rooms.append((room, room.put(torch.full((size,), step % 256, dtype=torch.uint8)), step % 256))
        else:
            taken = sum(-(-len(copy) // ALIGNMENT) * ALIGNMENT for _, copy, _ in rooms)
            largest_hole_at_least = (2048 - taken) // (len(rooms) + 1)
            assert size > largest_hole_at_least - ALIGNMENT
        assert all(bool((copy == value).all()) for _, copy, value in rooms)
    rooms.clear()
    room = None
    assert arena.cut(2048) is not None
