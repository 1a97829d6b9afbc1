"""`python -m gateway` as a process: it serves, ends on SIGTERM with code 0, and lets requests finish."""

import asyncio
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.gateway.fake_servers import FakeVllm, Sample
from tests.gateway.stack import CHAT, check_envelope, events

HI = {"messages": [{"role": "user", "content": "Hi"}]}
LISTENING = re.compile(rb"serving on (http://127\.0\.0\.1:\d+)")


@asynccontextmanager
async def gateway(*argv: str) -> AsyncGenerator[tuple[Process, httpx.AsyncClient], None]:
    """The process, which does not outlive this block, and a client."""
    command = [sys.executable, "-m", "gateway", "--port", "0", *argv]
    process = await asyncio.create_subprocess_exec(*command, stderr=PIPE)
    try:
        async with httpx.AsyncClient(base_url=await address(process), timeout=20) as http:
            yield process, http
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def address(process: Process) -> str:
    """Where it listens."""
    assert process.stderr is not None
    async for line in process.stderr:
        if found := LISTENING.search(line):
            return found[1].decode()
    raise AssertionError("the gateway did not start")


async def check_clean_end(process: Process) -> None:
    """It ends by itself, with exit code 0 and without a traceback."""
    _, stderr = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    assert b"Traceback" not in stderr


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
    async with gateway("--policy-url", vllm.url) as (process, http):
        asking = asyncio.create_task(http.post(CHAT, json=HI))
        await vllm.arrived.wait()
        process.send_signal(number)
        vllm.hold.set()
        assert (await asking).status_code == 200
        await check_clean_end(process)


async def test_an_open_stream_finishes(vllm: FakeVllm) -> None:
    gate = asyncio.Event()
    vllm.samples = [Sample("ab", gate=gate)]
    async with (
        gateway("--policy-url", vllm.url) as (process, http),
        http.stream("POST", CHAT, json={**HI, "stream": True}) as answer,
    ):
        lines = answer.aiter_lines()
        assert (await anext(lines)).startswith("data: {")
        process.send_signal(signal.SIGTERM)
        gate.set()
        assert [line async for line in lines if line][-1] == "data: [DONE]"
        await check_clean_end(process)


async def test_what_outlasts_the_drain_time_is_told(vllm: FakeVllm) -> None:
    vllm.samples = [Sample("ab", gate=asyncio.Event())]
    async with (
        gateway("--policy-url", vllm.url, "--drain-timeout", "0") as (process, http),
        http.stream("POST", CHAT, json={**HI, "stream": True}) as answer,
    ):
        lines = answer.aiter_lines()
        await anext(lines)
        vllm.hold.clear()
        vllm.arrived.clear()
        waiting = asyncio.create_task(http.post(CHAT, json=HI))
        await vllm.arrived.wait()
        process.send_signal(signal.SIGTERM)
        check_envelope(await waiting, 503, "stopping")
        last = events([line async for line in lines if line][-1])
        assert last[0]["error"]["code"] == "stopping"
        await check_clean_end(process)
    await vllm.wait_idle()
    assert vllm.aborted == 2


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
