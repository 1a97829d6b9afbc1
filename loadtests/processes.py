"""Servers under test as child processes: started, pinned to a core, their use of the machine read, ended."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from loadtests.errors import LoadTestError

START_LIMIT_S = 60.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    """What it wrote to stderr."""

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    def log_text(self) -> str:
        """All that it has logged."""
        return read_log(self.log)


def read_log(log: IO[bytes]) -> str:
    """A log from its start. The child writes on at its own place, which is why this one is not moved."""
    return os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode("utf-8", "replace")


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def cores() -> tuple[int, int]:
    """One core for the server under test, another for everything else; the same where there is but one."""
    available = sorted(os.sched_getaffinity(0))
    return available[0], available[-1]


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keep this process to one core for a while."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def server(
    arguments: Sequence[str],
    *,
    url: str,
    ready: str,
    core: int | None = None,
    env: Mapping[str, str] | None = None,
    limit_s: float = START_LIMIT_S,
) -> Iterator[Server]:
    """`python ARGUMENTS`, on one core or all: it answers `ready`, a path of `url`, when this yields, at most
    `limit_s` after its start, and is gone when this ends.

    Raises:
        LoadTestError: it does not start; with the last line of its log.
    """
    with TemporaryFile(buffering=0) as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **(env or {})},
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        try:
            if core is not None:
                os.sched_setaffinity(process.pid, {core})
            if not wait_ready(process, url + ready, limit_s):
                raise LoadTestError(_failure(arguments, log), exit_code=1)
            yield Server(url, process, log)
        finally:
            process.terminate()
            process.wait()


def wait_ready(process: subprocess.Popen[bytes], url: str, limit_s: float = START_LIMIT_S) -> bool:
    """Until the address answers 200: True; False when the process ends first, or takes too long."""
    deadline = time.monotonic() + limit_s
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with direct.open(url, timeout=5):
                return True
        except OSError:  # urllib's own errors, a refusal with a status among them, are of this family
            time.sleep(0.05)
    return False


def _failure(arguments: Sequence[str], log: IO[bytes]) -> str:
    last = read_log(log).strip().rpartition("\n")[2]
    return f"could not start: python {' '.join(arguments)}" + (f" ({last})" if last else "")


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def family(pid: int) -> list[int]:
    """A process and all that descend from it and still run."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has just ended
                continue
    members = [pid]
    for member in members:  # grows while it is read
        members += [child for child, parent in parents.items() if parent == member]
    return members


def family_cpu_seconds(pid: int) -> float:
    """User and system time of a process and of all that descend from it and still run."""
    return sum(cpu_seconds(member) for member in family(pid))


@contextmanager
def standing_still(*pids: int) -> Iterator[None]:
    """Processes and all that descend from them get no processor for a while: servers that take turns would
    disturb each other otherwise, for some keep waiting threads busy long after their last request."""
    members = [member for pid in pids for member in family(pid)]
    for member in members:
        os.kill(member, signal.SIGSTOP)
    try:
        yield
    finally:
        for member in members:
            os.kill(member, signal.SIGCONT)


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def open_files(pid: int) -> int:
    """File descriptors, sockets among them."""
    return len(os.listdir(f"/proc/{pid}/fd"))
