"""The log of `python -m gateway` as a process: what it holds, and a stderr that is stuck or full."""

import asyncio
import fcntl
import json
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import IO, Any

import httpx
import pytest

from tests.gateway.fake_servers import FakeRewardServer, FakeVllm
from tests.gateway.stack import CHAT

CANARY = "canary-7f3a"
SERVING = re.compile(rb"serving on (http://127\.0\.0\.1:\d+)")


def body(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": CANARY}], **fields}


@asynccontextmanager
async def gateway(*argv: str, stderr: int | IO[bytes]) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    """The process, which does not outlive this block."""
    command = [sys.executable, "-m", "gateway", "--drain-delay", "0", *argv]
    process = await asyncio.create_subprocess_exec(*command, stderr=stderr)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ended(process: asyncio.subprocess.Process) -> int:
    process.send_signal(signal.SIGTERM)
    return await asyncio.wait_for(process.wait(), 20)


@pytest.fixture
async def servers() -> AsyncGenerator[tuple[FakeVllm, FakeRewardServer], None]:
    vllm, rewards = FakeVllm(), FakeRewardServer()
    await vllm.start()
    await rewards.start()
    yield vllm, rewards
    await rewards.stop()
    await vllm.stop()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_every_line_is_json_and_holds_no_prompt_key_or_text_from_upstream(
    servers: tuple[FakeVllm, FakeRewardServer], workers: str
) -> None:
    vllm, rewards = servers
    argv = ["--port", "0", "--policy-url", vllm.url, "--reward-url", rewards.url, "--log-level", "debug"]
    async with gateway(*argv, "--workers", workers, stderr=asyncio.subprocess.PIPE) as process:
        assert process.stderr is not None
        first = await process.stderr.readline()
        found = SERVING.search(first)
        assert found
        headers = {"authorization": f"Bearer {CANARY}", "x-other": CANARY}
        async with httpx.AsyncClient(base_url=found[1].decode(), headers=headers, timeout=20) as http:
            await http.post(CHAT, json=body(user=CANARY), headers={"x-request-id": "plain"})
            await http.post(CHAT, json=body(best_of=4))
            await http.post(CHAT, json=body(stream=True))
            await http.post(CHAT, json=body(n=CANARY))
            await http.post(CHAT, content=CANARY)
            await http.post(CHAT, json=body(model=CANARY))
            await http.get(f"/{CANARY}?key={CANARY}")
            vllm.refusal = (500, CANARY, {})
            await http.post(CHAT, json=body())
            await http.post(CHAT, json=body(best_of=4, stream=True))
        assert await ended(process) == 0
        text = await process.stderr.read()
    assert CANARY.encode() not in text
    lines = [json.loads(line) for line in text.splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in requests[:3]] == [200, 200, 200]
    assert requests[0]["request_id"] == "plain"
    assert requests[0]["replica"] == vllm.url
    assert (requests[1]["best_of"], requests[1]["scored"]) == (4, 4)
    assert {line["status"]: line["error_code"] for line in requests[3:7]}[404] == "not_found"
    assert len(requests) == 9


async def free_port() -> str:
    server = await asyncio.start_server(lambda _, __: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return str(port)


def client(port: str) -> httpx.AsyncClient:
    """It waits until the gateway listens, whose log cannot be read for that here."""
    patient = httpx.AsyncHTTPTransport(retries=8)
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, transport=patient)


@pytest.mark.parametrize("kind", ["stuck pipe", "full disk"])
async def test_requests_are_answered_when_the_log_cannot_be_written(
    servers: tuple[FakeVllm, FakeRewardServer], kind: str
) -> None:
    port = await free_port()
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    if kind == "full disk":
        os.close(writing)
        writing = os.open("/dev/full", os.O_WRONLY)
    async with gateway("--port", port, "--policy-url", servers[0].url, stderr=writing) as process:
        async with client(port) as http:
            for _ in range(60):
                assert (await http.post(CHAT, json=body())).status_code == 200
            metrics = (await http.get("/metrics")).text
        dropped = re.search(r"^bonsai_gateway_log_lines_dropped_total (\S+)", metrics, re.MULTILINE)
        assert dropped
        assert (float(dropped[1]) > 0) is (kind == "full disk")  # a pipe's lines still wait for a reader
        assert await ended(process) == 0
    os.close(reading)
    os.close(writing)
