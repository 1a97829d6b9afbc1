"""Starts child processes in stages, waits until they are ready, notices a death, and leaves none behind.

Each child leads a process group of its own: a Ctrl-C on the terminal reaches the launcher alone, and a group
can be ended with everything that the child has started (vLLM's engine). A watchdog process does the same when
the launcher itself is killed.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

from gateway.launch_checks import LaunchError
from gateway.launch_specs import ChildSpec

POLL_S = 0.25
CONTRACT_CODES = range(2, 8)
WATCHDOG = Path(__file__).with_name("launch_watchdog.py")
TELLING = re.compile(r"\b\w*(Error|Exception|error)\b.*\S")
State = Literal["waiting", "starting", "ready"]


@dataclass(frozen=True)
class Status:
    """What a display shows of one child."""

    name: str
    state: State
    seconds: float
    last_line: str


class Stack:
    """Child processes that live and die together; a stage starts when the one before it is ready."""

    def __init__(self, stages: Sequence[Sequence[ChildSpec]], log_dir: Path, start_timeout_s: float) -> None:
        self._stages = stages
        self._log_dir = log_dir
        self._start_timeout_s = start_timeout_s
        self._children: list[_Child] = []
        self._watchdog: _Watchdog | None = None

    def start(self, stop: threading.Event, show: Callable[[list[Status]], None]) -> bool:
        """Start everything and wait until all is ready: True; False when `stop` was set meanwhile.

        `show` is called a few times a second with every child's state. LaunchError on a death or a time-out.
        """
        self._watchdog = _Watchdog()
        for stage in self._stages:
            started = [self._spawn(spec) for spec in stage]
            if not self._wait_ready(started, stop, show):
                return False
        return True

    def check(self) -> None:
        """LaunchError naming a child that is no longer there."""
        for child in self._children:
            code = child.process.poll()
            if code is not None:
                raise _death(child, code)

    def stop(self, hurry: threading.Event) -> None:
        """SIGTERM, the door first; what remains of each group gets SIGKILL. With `hurry` set nobody waits."""
        for child in reversed(self._children):
            child.terminate()
        for child in reversed(self._children):
            child.end(hurry)
            if self._watchdog is not None:
                self._watchdog.forget(child.process.pid)
        self._children.clear()
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None

    def pids(self) -> dict[str, int]:
        """The process of each child, by name."""
        return {child.spec.name: child.process.pid for child in self._children}

    def _spawn(self, spec: ChildSpec) -> "_Child":
        child = _Child(spec, self._log_dir / f"{spec.name}.log")
        self._children.append(child)
        if self._watchdog is not None:
            self._watchdog.guard(child.process.pid)
        return child

    def _wait_ready(
        self, started: Sequence["_Child"], stop: threading.Event, show: Callable[[list[Status]], None]
    ) -> bool:
        deadline = time.monotonic() + self._start_timeout_s
        with httpx.Client(timeout=2.0, trust_env=False) as client:
            while not all(child.ready for child in started):
                if stop.wait(POLL_S):
                    return False
                self.check()
                for child in started:
                    child.probe(client)
                show(self._statuses())
                if time.monotonic() > deadline:
                    raise _too_slow(started, self._start_timeout_s)
        return True

    def _statuses(self) -> list[Status]:
        there = {child.spec.name: child.status() for child in self._children}
        specs = [spec for stage in self._stages for spec in stage]
        return [there.get(spec.name, Status(spec.name, "waiting", 0.0, "")) for spec in specs]


@contextmanager
def stop_signals() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Two events: the first SIGINT, SIGTERM or SIGHUP sets `stop`, a second one `hurry`."""
    stop, hurry = threading.Event(), threading.Event()

    def handle(number: int, frame: object) -> None:
        (hurry if stop.is_set() else stop).set()

    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in handled}
    try:
        yield stop, hurry
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Child:
    """One running child and its log."""

    def __init__(self, spec: ChildSpec, log_path: Path) -> None:
        self.spec = spec
        self.log_path = log_path
        self.ready = False
        self._started = time.monotonic()
        self._took = 0.0
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(
                spec.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"PYTHONUNBUFFERED": "1", **spec.env, **os.environ},
                start_new_session=True,
            )

    def probe(self, client: httpx.Client) -> None:
        """Ask, until it was ready once."""
        if self.ready:
            return
        try:
            self.ready = client.get(self.spec.ready_url).status_code == 200
        except httpx.HTTPError:
            return
        self._took = time.monotonic() - self._started

    def status(self) -> Status:
        if self.ready:
            return Status(self.spec.name, "ready", self._took, "")
        lines = tail(self.log_path, num_bytes=4096)
        seconds = time.monotonic() - self._started
        return Status(self.spec.name, "starting", seconds, lines[-1] if lines else "")

    def terminate(self) -> None:
        """Ask the child, not its group: it ends its own processes in its own order."""
        if self.process.poll() is None:
            self.process.terminate()

    def end(self, hurry: threading.Event) -> None:
        """Wait for it as long as its grace lasts; then nothing of its group remains."""
        deadline = time.monotonic() + self.spec.grace_s
        while self.process.poll() is None and time.monotonic() < deadline and not hurry.is_set():
            hurry.wait(0.05)
        with suppress(ProcessLookupError):  # the whole group has gone by itself
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class _Watchdog:
    """The process that outlives a killed launcher just long enough to end its children."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", str(WATCHDOG)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, text=True)

    def guard(self, group: int) -> None:
        self._write(f"+{group}\n")

    def forget(self, group: int) -> None:
        self._write(f"-{group}\n")

    def close(self) -> None:
        """End of input: it ends what it still guards (nothing after an orderly stop) and exits."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()


def tail(log_path: Path, num_bytes: int = 64 * 1024) -> list[str]:
    """The last lines of a log that hold anything, without colours."""
    with log_path.open("rb") as log:
        log.seek(max(0, log_path.stat().st_size - num_bytes))
        text = log.read().decode("utf-8", errors="replace")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return [line.strip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


def last_words(log_path: Path, most: int = 4) -> list[str]:
    """The lines of a dead child's log that tell why: those that name errors, else simply the last."""
    lines = tail(log_path)
    telling = list(dict.fromkeys(line for line in lines if TELLING.search(line)))
    return telling[-most:] if telling else lines[-most:]


def _death(child: _Child, code: int) -> LaunchError:
    how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
    message = f"{child.spec.name} ended with {how}; its log is {child.log_path}"
    words = [f"  {line[:300]}" for line in last_words(child.log_path)]
    return LaunchError("\n".join([message, *words]), code if code in CONTRACT_CODES else 1)


def _too_slow(children: Sequence[_Child], timeout_s: float) -> LaunchError:
    late = next(child for child in children if not child.ready)
    lines = tail(late.log_path)
    message = f"{late.spec.name} was not ready within {timeout_s:g} s; its log is {late.log_path}"
    return LaunchError("\n".join([message, *(f"  {line[:300]}" for line in lines[-1:])]), 1)
