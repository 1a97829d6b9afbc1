"""Servers as child processes."""

import os

import pytest

from loadtests.errors import LoadTestError
from loadtests.processes import (
    cores,
    cpu_seconds,
    family_cpu_seconds,
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
        assert 0 < cpu_seconds(running.pid) <= family_cpu_seconds(running.pid)
        assert resident_bytes(running.pid) > 1024 * 1024
        assert open_files(running.pid) >= 3
    assert running.process.poll() is not None


def test_pinning_ends() -> None:
    before = os.sched_getaffinity(0)
    with pinned(max(before)):
        assert os.sched_getaffinity(0) == {max(before)}
    assert os.sched_getaffinity(0) == before


PARENT = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[2]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
http.server.test(http.server.SimpleHTTPRequestHandler, bind="127.0.0.1", port=int(sys.argv[1]))
"""
CHILD = "for _ in range(20): sum(range(10**6))\nprint(flush=True)\ninput()"
"""It works, and then lives for as long as its parent."""


def test_what_children_use_is_their_familys() -> None:
    port = free_port()
    with server(["-c", PARENT, str(port), CHILD], url=f"http://127.0.0.1:{port}", ready="/") as running:
        assert family_cpu_seconds(running.pid) > cpu_seconds(running.pid) + 0.1
