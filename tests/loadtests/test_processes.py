"""Servers as child processes."""

import os

import pytest

from loadtests.errors import LoadTestError
from loadtests.processes import (
    cores,
    cpu_seconds,
    free_port,
    open_files,
    pinned,
    resident_bytes,
    server,
)


def test_a_server_that_does_not_start_says_its_last_line() -> None:
    code = "import sys; sys.exit('first\\nno such thing')"
    with (
        pytest.raises(LoadTestError, match=r"could not start: python -c .*\(no such thing\)") as caught,
        server(["-c", code], url="http://127.0.0.1:9", ready="/", core=cores()[0]),
    ):
        pass
    assert caught.value.exit_code == 1


def test_a_server_runs_on_its_core_and_its_log_can_be_read() -> None:
    port = free_port()
    core, _ = cores()
    arguments = ["-m", "http.server", "--bind", "127.0.0.1", str(port)]
    with server(arguments, url=f"http://127.0.0.1:{port}", ready="/", core=core) as running:
        assert os.sched_getaffinity(running.pid) == {core}
        assert '"GET / HTTP/1.1" 200' in running.log_text()
        assert cpu_seconds(running.pid) > 0
        assert resident_bytes(running.pid) > 1024 * 1024
        assert open_files(running.pid) >= 3
    assert running.process.poll() is not None


def test_pinning_ends() -> None:
    before = os.sched_getaffinity(0)
    with pinned(max(before)):
        assert os.sched_getaffinity(0) == {max(before)}
    assert os.sched_getaffinity(0) == before
