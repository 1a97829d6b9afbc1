"""The threads of a process that scores, and what they may use of the machine.

Only the scoring thread computes with several cores. GNU's OpenMP makes a team of workers for every thread
that does, and where the teams together are larger than the machine, no worker waits actively for its next
piece of work: all are woken anew, hundreds of times in a forward pass. A second team that had only loaded the
model made short forward passes a fifth slower.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
MAX_BLOCK_BYTES = 64 * 2**20  # above what a layer makes of a batch, below the weights of large models
MAX_KEPT_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Threads:
    """One thread for tokenizers, one for forward passes: neither kind may be called by two at once."""

    tokenizing: Executor
    scoring: Executor


@contextmanager
def threads(num_threads: int) -> Iterator[Threads]:
    """Forward passes get `num_threads` cores; this thread, and those that it starts, one each."""
    _keep_freed_memory()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(1, "tokenize") as tokenizing, _computing("score", num_threads) as scoring:
        yield Threads(tokenizing, scoring)


def loading_thread() -> ThreadPoolExecutor:
    """For models that come while others serve."""
    return _computing("load", 1)


def _computing(name: str, num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, name, initializer=torch.set_num_threads, initargs=(num_threads,))


def _keep_freed_memory() -> None:
    """glibc returns large blocks to the system at once, and every forward pass then waits for thousands of
    pages to be handed out again: up to a quarter of its time."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc's
        libc.mallopt(M_MMAP_THRESHOLD, MAX_BLOCK_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, MAX_KEPT_BYTES)
