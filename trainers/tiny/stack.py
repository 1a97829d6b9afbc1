"""A served stack for the demo: `python -m gateway up` as a child process."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

START_LIMIT = 300.0
"""Seconds; an engine on a CPU is ready in 20 to 60."""
STOP_LIMIT = 50.0


class StackError(Exception):
    """The stack did not start, or ended; it has said why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("the stack is not running")
        self.exit_code = exit_code


@dataclass(frozen=True)
class Ports:
    """Where the stack listens on 127.0.0.1."""

    gateway: int
    reward: int


class Stack:
    """At most one policy served at a time, with best-of-N by a reward model."""

    def __init__(self, reward_model: Path, ports: Ports) -> None:
        self._reward_model, self._ports = reward_model, ports
        self._child: subprocess.Popen[bytes] | None = None
        self._policy: Path | None = None
        self._log = Path(os.devnull)
        self.url = f"http://127.0.0.1:{ports.gateway}"
        self.reward_url = f"http://127.0.0.1:{ports.reward}"

    def serve(self, policy: Path) -> None:
        """Serves `policy`, instead of what was served before; returns when it is ready.

        Raises StackError with the child's exit code where it ends before that.
        """
        if policy == self._policy:
            return
        self.stop()
        ready = policy.parent / "ready.json"
        ready.unlink(missing_ok=True)
        self._log = policy.parent / "logs" / f"{policy.name}.log"
        self._log.parent.mkdir(exist_ok=True)
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(self._command(policy, ready), stdout=log)
        _wait(self._child, ready)
        self._policy = policy

    def greeting(self) -> str:
        """What the served stack told its user when it was ready: its address, and things to try."""
        said = self._log.read_text(encoding="utf-8", errors="replace")
        return said[max(0, said.find("Bonsai is up")) :].strip()

    def wait(self) -> int:
        """Waits for the served stack to end; returns its exit code."""
        return self._child.wait() if self._child else 0

    def stop(self) -> None:
        """Ends what is served, and everything that it started."""
        child, self._child, self._policy = self._child, None, None
        if child is None:
            return
        child.terminate()
        try:
            child.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _command(self, policy: Path, ready: Path) -> list[str]:
        flags = {
            "policy": policy,
            "reward-model": self._reward_model,
            "port": self._ports.gateway,
            "reward-port": self._ports.reward,
            "served-model-name": policy.name,
            "log-dir": policy.parent / "logs" / policy.name,
            "ready-file": ready,
        }
        arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        return [sys.executable, "-m", "gateway", "up", *arguments]


def _wait(child: subprocess.Popen[bytes], ready: Path) -> None:
    limit = time.monotonic() + START_LIMIT
    while not ready.exists():
        if child.poll() is not None or time.monotonic() > limit:
            raise StackError(child.returncode or 1)
        time.sleep(0.1)
