"""Rows of token ids -> a tree in which what several rows begin with stands once.

N answers to one prompt, full texts of 5 parts each, hold the prompt's 4 parts N times. In the tree the prompt
is one chunk and each answer another below it, so a forward pass reads 4 + N parts instead of 5 N. Sharing is
found by comparing tokens, never by where a template says that the prompt ends: it is exact by construction.
Pure functions; no torch here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

# A split costs another attention call in every layer, about as much as this many tokens.
MIN_SHARED = 16
# In one call of attention, where each of several answers gets its own copy of the prompt's keys.
MAX_COPIED_KEYS = 8192
# Of the tokens in one call, whose chunks are padded to the longest. Nothing but attention is padded.
MAX_PADDING = 1 / 4


class TextIds(list[int]):
    """The token ids of one conversation, which knows how many of them lead up to the turn that is judged.

    That number is a hint on what to keep for later requests: where it is wrong, only time is lost.
    """

    prompt_length: int = 0


@dataclass(frozen=True)
class Chunk:
    """Tokens that follow on those of `parent`, or on those that the tree takes as known."""

    ids: Sequence[int]
    position: int  # of its first token in its rows
    parent: int | None  # the index of a chunk before this one


@dataclass(frozen=True)
class Tree:
    """Chunks, parents first, and for each row the chunk whose last token is its own."""

    chunks: list[Chunk] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)  # index of a row -> index of a chunk

    def path(self, chunk: int | None) -> list[int]:
        """The chunks from the root to `chunk`."""
        path: list[int] = []
        while chunk is not None:
            path.append(chunk)
            chunk = self.chunks[chunk].parent
        return path[::-1]

    def siblings(self) -> list[list[int]]:
        """All chunks, cut into groups that attend in one call: of one parent and nearly equal length."""
        of_parent: defaultdict[int | None, list[int]] = defaultdict(list)
        for index, chunk in enumerate(self.chunks):
            of_parent[chunk.parent].append(index)
        return [group for family in of_parent.values() for group in self._cut(family)]

    def _cut(self, family: list[int]) -> Iterator[list[int]]:
        group: list[int] = []
        real = 0
        for index in sorted(family, key=lambda index: len(self.chunks[index].ids), reverse=True):
            chunk = self.chunks[index]
            length = len(chunk.ids)
            if group:
                longest, num = len(self.chunks[group[0]].ids), len(group) + 1
                padding = num * longest - real - length
                keys = num * (chunk.position + longest)
                if padding > MAX_PADDING * (real + length) or keys > MAX_COPIED_KEYS:
                    yield group
                    group, real = [], 0
            group.append(index)
            real += length
        yield group


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows begin with together."""
    limit = min(len(one), len(other))
    if one[:limit] == other[:limit]:
        return limit
    # Slices compare in C: the first length at which they differ, less one.
    return bisect_left(range(1, limit + 1), True, key=lambda length: one[:length] != other[:length])


def grow(rows: Sequence[Sequence[int]], members: Iterable[int], known: int = 0) -> Tree:
    """The tree of the rows with the indices `members`, which agree in their first `known` tokens and go on.

    Those tokens were computed before, and stand in no chunk.
    """
    tree = Tree()
    ordered = sorted(members, key=lambda member: tuple(rows[member]))
    shared = [common_length(rows[one], rows[other]) for one, other in pairwise(ordered)]
    todo: list[tuple[int, int, int, int | None]] = [(0, len(ordered), known, None)]
    while todo:
        first, last, position, parent = todo.pop()
        for start, stop in _runs(first, last, shared, position):
            row = rows[ordered[start]]
            end = min(shared[start : stop - 1], default=len(row))
            tree.chunks.append(Chunk(row[position:end], position, parent))
            chunk = len(tree.chunks) - 1
            while start < stop and len(rows[ordered[start]]) == end:  # the shortest come first
                tree.ends[ordered[start]] = chunk
                start += 1
            if start < stop:
                todo.append((start, stop, end, chunk))
    return tree


def _runs(first: int, last: int, shared: Sequence[int], position: int) -> Iterator[tuple[int, int]]:
    """Cuts sorted rows wherever neighbours have too little in common beyond `position` to share it."""
    start = first
    for row in range(first + 1, last):
        if shared[row - 1] - position < MIN_SHARED:
            yield start, row
            start = row
    yield start, last
