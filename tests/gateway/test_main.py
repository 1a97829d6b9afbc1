"""`python -m gateway` as a process: it serves, ends on SIGTERM with code 0, and lets requests finish."""

import asyncio
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator

import httpx
import pytest

from tests.gateway.fake_servers import FakeVllm

LISTENING = re.compile(rb"serving on (http://127\.0\.0\.1:\d+)")


async def start(*argv: str) -> tuple[Process, str]:
    """The process and its address."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "gateway", *argv, stderr=PIPE)
    assert process.stderr is not None
    async for line in process.stderr:
        if found := LISTENING.search(line):
            return process, found[1].decode()
    raise AssertionError("the gateway did not start")


@pytest.fixture
async def vllm() -> AsyncGenerator[FakeVllm, None]:
    server = FakeVllm()
    await server.start()
    yield server
    await server.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_requests_in_flight_finish_and_the_exit_code_is_0(
    number: signal.Signals, vllm: FakeVllm
) -> None:
    vllm.hold.clear()
    process, url = await start("--policy-url", vllm.url, "--port", "0")
    async with httpx.AsyncClient(base_url=url, timeout=20) as http:
        body = {"messages": [{"role": "user", "content": "Hi"}]}
        asking = asyncio.create_task(http.post("/v1/chat/completions", json=body))
        await vllm.arrived.wait()
        process.send_signal(number)
        vllm.hold.set()
        assert (await asking).status_code == 200
    _, stderr = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    assert b"Traceback" not in stderr


async def test_a_wrong_command_line_is_one_line_and_code_2() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "gateway", stderr=PIPE)
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert b"Traceback" not in stderr
    assert b"--policy-url" in stderr.splitlines()[-1]


async def test_a_port_in_use_is_said_without_a_traceback(vllm: FakeVllm) -> None:
    port = vllm.url.rsplit(":", 1)[1]
    argv = ["--policy-url", vllm.url, "--port", port]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "gateway", *argv, stderr=PIPE)
    _, stderr = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert b"Traceback" not in stderr
    assert b"Address already in use" in stderr.splitlines()[-1]
