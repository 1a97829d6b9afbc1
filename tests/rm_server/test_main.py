"""The command as a process: ready line, exit codes, signals."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from rm_server.__main__ import main

ROOT = Path(__file__).parents[2]


@contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server as a process, and the URL that it says it is ready at."""
    server = subprocess.Popen(
        [sys.executable, "-m", "rm_server", "--port", "0", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        ready = re.search(
            r"rm_server ready: (http://\S+) \(\w+ version [0-9a-f]{12}\)", server.stdout.readline()
        )
        assert ready
        yield server, ready[1]
    finally:
        server.kill()
        server.wait()
        if server.stdout:
            server.stdout.close()


@pytest.mark.slow
def test_serves_until_terminated(tiny_checkpoint: Path) -> None:
    with process("--model", str(tiny_checkpoint)) as (server, url):
        assert httpx.get(f"{url}/health/ready").status_code == 200
        body = {"messages": [{"role": "user", "content": "q"}], "responses": ["a", "b"]}
        assert len(httpx.post(f"{url}/score", json=body).json()["scores"]) == 2
        server.terminate()
        assert server.wait(timeout=20) == 0


def test_a_port_in_use_is_exit_code_2(tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--model", str(tiny_checkpoint), "--port", str(port), "--threads", "1"]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line == f"rm_server: cannot listen on 127.0.0.1:{port}: Address already in use"


def test_a_wrong_flag_is_exit_code_2(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "x", "--dtype", "int8"]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_a_bad_checkpoint_is_exit_code_3(loose_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (loose_checkpoint / "model.safetensors").rename(loose_checkpoint / "pytorch_model.bin")
    capfd.readouterr()  # what saving the fixture printed
    assert main(["--model", str(loose_checkpoint), "--port", "0", "--threads", "1"]) == 3
    [line] = capfd.readouterr().err.splitlines()
    assert "Pickle checkpoints are not supported" in line


def test_a_missing_checkpoint_is_exit_code_3(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "./no/such/folder", "--port", "0", "--threads", "1"]) == 3
    assert capfd.readouterr().err == "rm_server: ./no/such/folder: no such folder\n"
