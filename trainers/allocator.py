"""How the C library hands out memory: freed memory is kept for the next step.

glibc gives every larger block back to the kernel when it is freed, and gets it back page by page, zeroed, a
moment later. A training step allocates and frees the same blocks over and over: at 15 M parameters in
bfloat16 that was 16,000 page faults and a quarter of a step's time, most of it within the matrix products
that write to the new pages.
"""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
KEPT = 2**30
"""Bytes: larger blocks, and a larger free end of the heap, are given back as before."""
CHOICES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Variables of the environment by which a user decides instead."""


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed; says whether that was done. Another C library has no such switch."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in os.environ for name in CHOICES):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT)) and bool(mallopt(M_MMAP_THRESHOLD, KEPT))
