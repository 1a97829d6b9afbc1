"""Which rows go through the model together: the two ways to cut a window of the queue into forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from rm_server.packing import MIN_SHARED, common_length

# Where rows are padded, a forward pass costs about this many tokens whatever it holds; padding below it is
# cheaper than another pass.
FORWARD_OVERHEAD_TOKENS = 64
MAX_ROW_PADDING = 1 / 8  # of a batch's real tokens, beyond that


class HasIds(Protocol):
    """What planning looks at."""

    @property
    def ids(self) -> Sequence[int]: ...


R = TypeVar("R", bound=HasIds)


class Plan(Protocol):
    """Cuts rows into batches; every row is in one of them."""

    def __call__(self, rows: Sequence[R], max_batch_tokens: int) -> list[list[R]]: ...


def plan_packed(rows: Sequence[R], max_batch_tokens: int) -> list[list[R]]:
    """Cuts rows into forward passes of at most `max_batch_tokens`, shared tokens counted once (a single row
    may exceed it, and by what a batch shares with the one before). Rows that begin alike come together."""
    batches: list[list[R]] = []
    used = 0
    before: Sequence[int] = []
    for row in sorted(rows, key=lambda row: tuple(row.ids)):
        shared = common_length(before, row.ids)
        new = len(row.ids) - (shared if shared >= MIN_SHARED else 0)
        if batches and used + new <= max_batch_tokens:
            batches[-1].append(row)
            used += new
        else:  # what this row shares with the last batch is known from there, if prompts are kept
            batches.append([row])
            used = new
        before = row.ids
    return batches


def plan_padded(rows: Sequence[R], max_batch_tokens: int) -> list[list[R]]:
    """Cuts rows into forward passes, longest first, such that rows x longest stays within `max_batch_tokens`
    (a single row may exceed it) and padding stays small."""
    batches: list[list[R]] = []
    longest = real = 0
    for row in sorted(rows, key=lambda row: len(row.ids), reverse=True):
        length = len(row.ids)
        if batches:
            padded = longest * (len(batches[-1]) + 1)
            padding = padded - real - length
            allowed = FORWARD_OVERHEAD_TOKENS + MAX_ROW_PADDING * (real + length)
            if padded <= max_batch_tokens and padding <= allowed:
                batches[-1].append(row)
                real += length
                continue
        batches.append([row])
        longest = real = length
    return batches
