"""Where log lines go: a file descriptor that may be slow, full, blocked or closed, and must hold up nobody.

Lines wait in a bounded queue for a thread that writes them. Where they come faster than they go, or cannot be
written at all, they are dropped and counted: a gateway must go on when nobody reads its log.
"""

import os
import select
import threading
from collections import deque
from collections.abc import Callable, Sequence

MOST_LINES = 4096
GATHER_S = 0.02
"""Lines of that time are written together: waking the thread for each would cost more than the line."""
PATIENCE_S = 1.0
NEWLINE = b"\n"


class LogSink:
    """Takes lines from any thread.

    Args:
        fd: where to write.
        most: lines that may wait.
    """

    def __init__(self, fd: int, most: int = MOST_LINES) -> None:
        self.on_drop: Callable[[int], object] | None = None
        """Told how many lines were lost, in any thread."""
        self.dropped = 0
        self._fd = fd
        self._most = most
        self._lines: deque[bytes] = deque()
        self._news = threading.Event()
        self._closing = threading.Event()
        self._torn = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Have a line written; it ends in a newline. Never waits."""
        if len(self._lines) >= self._most:
            self._drop(1)
            return
        self._lines.append(line)
        if not self._news.is_set():
            self._news.set()

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """Write what waits, if that is possible within `patience_s`."""
        self._closing.set()
        self._news.set()
        self._thread.join(patience_s)

    def _run(self) -> None:
        while not (self._closing.is_set() and not self._lines):
            self._news.wait()
            self._closing.wait(GATHER_S)
            self._news.clear()
            while self._lines:
                self._write(self._group())

    def _group(self) -> list[bytes]:
        """The next lines, up to as many bytes as a pipe takes in one piece, so that the lines of processes
        that share one do not mix."""
        size = len(NEWLINE) + len(self._lines[0])
        group = [self._lines.popleft()]
        while self._lines and (size := size + len(self._lines[0])) <= select.PIPE_BUF:
            group.append(self._lines.popleft())
        return group

    def _write(self, group: Sequence[bytes]) -> None:
        data = NEWLINE * self._torn + b"".join(group)
        done = 0
        try:
            while done < len(data):
                done += self._write_some(data[done:])
            self._torn = False
        except OSError:
            whole = data[self._torn : done].count(NEWLINE)
            self._torn = data[done - 1 : done] != NEWLINE if done else self._torn
            self._drop(len(group) - whole)

    def _write_some(self, data: bytes) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:  # whoever shares the descriptor has made it so; we are a thread and may wait
            if self._closing.is_set():
                raise
            select.select([], [self._fd], [], GATHER_S)
            return 0

    def _drop(self, count: int) -> None:
        self.dropped += count
        if self.on_drop is not None:
            self.on_drop(count)
