"""The memory that this process and everything it started use together."""

import threading
from types import TracebackType
from typing import Self

import psutil

PERIOD = 1.0  # seconds


class PeakMemory:
    """Watches the proportional set size of the process tree while it is entered; `peak` is in bytes.

    Proportional: a page that several processes share is counted once in all.
    """

    def __init__(self, peak: int = 0) -> None:
        self.peak = peak
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, tree_bytes(psutil.Process()))
            if self._stop.wait(PERIOD):
                return


def tree_bytes(root: psutil.Process) -> int:
    """The proportional set size of a process and all its descendants, in bytes; 0 where it cannot be read."""
    return sum(map(_bytes, [root, *root.children(recursive=True)]))


def _bytes(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except psutil.Error:  # gone, or another user's
        return 0
    return int(getattr(memory, "pss", memory.rss))
