"""The gateway as a process of its own, before servers that answer everything."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LISTENING = re.compile(r"serving on (http://127\.0\.0\.1:\d+)")


@contextmanager
def ended(*command: str, **pipes: int) -> Iterator[subprocess.Popen[str]]:
    """A Python process that does not outlive the block."""
    with subprocess.Popen([sys.executable, *command], encoding="utf-8", **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Its address, and the file that its log goes to."""
    log = tmp_path_factory.mktemp("fuzz") / "gateway.log"
    with ended("-m", "tests.fuzz.upstream", stdout=subprocess.PIPE) as upstream:
        assert upstream.stdout is not None
        policy, reward = upstream.stdout.readline().split()
        command = ["-m", "gateway", "--port", "0", "--drain-delay", "0"]
        command += ["--policy-url", policy, "--reward-url", reward]
        with log.open("w") as stderr, ended(*command, stderr=stderr.fileno()) as process:
            while (found := LISTENING.search(log.read_text())) is None:
                assert process.poll() is None, log.read_text()
            yield found[1], log
