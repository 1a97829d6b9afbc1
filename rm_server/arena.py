"""One block of memory from which rooms of any size are cut, and to which they return.

Memory that a process has not touched before costs a page fault every 4 KiB, microseconds each: where a room
is made for every prompt that is kept, more than copying the prompt. So places are used again, the
first that fits, and until all of them have been touched the kernel is asked for large pages. On a CPU the
block is apart from the heap: there, rooms would lie among the blocks of forward passes, which come and go,
and leave gaps.
"""

from __future__ import annotations

import mmap
import weakref
from bisect import insort
from contextlib import suppress

import torch

ALIGNMENT = 64


class Room:
    """A part of the block, which returns to it when nobody holds the room. Tensors in it do not hold it."""

    def __init__(self, place: torch.Tensor) -> None:
        self._bytes = place
        self._used = 0

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor; all of them have one dtype. What finds no room goes to the heap."""
        end = self._used + tensor.nbytes
        if end > len(self._bytes):
            return tensor.clone()
        place = self._bytes[self._used : end].view(tensor.dtype).view(tensor.shape)
        self._used = end
        return place.copy_(tensor)


class Arena:
    """Not thread-safe: one thread cuts rooms, and lets go of them."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        num_bytes -= num_bytes % ALIGNMENT
        self._bytes = _reserve(num_bytes, device)
        self._holes = [(0, num_bytes)] if num_bytes else []
        self._next = 0
        """Where the room that was cut last ends: the search begins there, so that the oldest place is
        next.
        """

    def cut(self, num_bytes: int) -> Room | None:
        """A room of so many bytes, one at least; None where no hole is as large."""
        size = -(-max(1, num_bytes) // ALIGNMENT) * ALIGNMENT
        hole = next((hole for hole in self._holes if hole[1] - hole[0] >= size), None)
        if hole is None:
            return None
        start, end = hole
        self._holes.remove(hole)
        if start + size < end:
            insort(self._holes, (start + size, end))
        room = Room(self._bytes[start : start + num_bytes])
        weakref.finalize(room, self._give_back, start, start + size).atexit = False
        return room

    def _give_back(self, start: int, end: int) -> None:
        insort(self._holes, (start, end))
        at = self._holes.index((start, end))
        if at + 1 < len(self._holes) and self._holes[at + 1][0] == end:
            end = self._holes.pop(at + 1)[1]
        if at and self._holes[at - 1][1] == start:
            start = self._holes.pop(at - 1)[0]
            at -= 1
        self._holes[at] = (start, end)


def _reserve(num_bytes: int, device: torch.device) -> torch.Tensor:
    """Addresses alone; memory comes when it is written to."""
    if not num_bytes or device.type != "cpu":
        return torch.empty(num_bytes, dtype=torch.uint8, device=device)
    block = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError, AttributeError):  # a kernel without large pages
        block.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(block, dtype=torch.uint8)
