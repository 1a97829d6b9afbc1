"""`python -m gateway` as a process: how it starts, serves and leaves."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from tests.gateway.fake_servers import FakeRewardServer, FakeVllm, Sample
from tests.gateway.processes import Running, gateway
from tests.gateway.stack import CHAT, check_envelope, events

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
STREAM = {**HI, "stream": True}
AT_ONCE = ("--drain-delay", "0")
NEVER = ("--drain-delay", "3600")


@pytest.fixture
async def vllm() -> AsyncGenerator[FakeVllm, None]:
    server = FakeVllm()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def rewards() -> AsyncGenerator[FakeRewardServer, None]:
    server = FakeRewardServer()
    await server.start()
    yield server
    await server.stop()


async def read_stream(http: httpx.AsyncClient, begun: asyncio.Event | None = None) -> list[str]:
    """The lines of a stream; `begun` is set with the first."""
    async with http.stream("POST", CHAT, json=STREAM) as answer:
        lines = answer.aiter_lines()
        first = await anext(lines)
        if begun is not None:
            begun.set()
        return [first, *[line async for line in lines]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_gateway_ends(number: signal.Signals, vllm: FakeVllm) -> None:
    delay = AT_ONCE if number == signal.SIGTERM else NEVER  # Ctrl-C waits for no load balancer
    async with gateway("--policy-url", vllm.url, *delay) as running:
        running.process.send_signal(number)
        await running.ends_well()


async def test_nothing_in_flight_is_lost(vllm: FakeVllm, rewards: FakeRewardServer) -> None:
    gate = asyncio.Event()
    vllm.samples = [Sample("a" * (index + 1), gate=gate) for index in range(8)]
    argv = ("--policy-url", vllm.url, "--reward-url", rewards.url, *AT_ONCE)
    async with gateway(*argv) as running, asyncio.timeout(60):
        http = running.http
        begun = [asyncio.Event() for _ in range(10)]
        streaming = [asyncio.create_task(read_stream(http, event)) for event in begun]
        await asyncio.gather(*(event.wait() for event in begun))
        bodies = [HI] * 10 + [{**HI, "best_of": 8}] * 10
        vllm.hold.clear()
        asking = [asyncio.create_task(http.post(CHAT, json=body)) for body in bodies]
        await running.in_flight(30)
        running.process.send_signal(signal.SIGTERM)
        await running.refuses()
        vllm.hold.set()
        gate.set()
        answers = await asyncio.gather(*asking)
        streams = await asyncio.gather(*streaming)
        assert [answer.status_code for answer in answers] == [200] * 20
        assert [answer.json()["alignment"]["scored"] for answer in answers[10:]] == [8] * 10
        assert [lines[-2] for lines in streams] == ["data: [DONE]"] * 10
        await running.ends_well()


async def test_new_requests_are_served_while_load_balancers_notice(vllm: FakeVllm) -> None:
    async with gateway("--policy-url", vllm.url, *NEVER) as running:
        before = await running.http.get("/health/ready")
        assert (before.status_code, "connection" in before.headers) == (200, False)
        running.process.send_signal(signal.SIGTERM)
        await running.unready()
        check_envelope(await running.http.get("/health/ready"), 503, "not_ready")
        answer = await running.http.post(CHAT, json=HI)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert (await read_stream(running.http))[-2] == "data: [DONE]"
        assert (await running.http.get("/health/live")).status_code == 200
        running.process.send_signal(signal.SIGTERM)
        await running.ends_well()


async def test_what_outlasts_the_drain_time_is_told(vllm: FakeVllm) -> None:
    async with gateway("--policy-url", vllm.url, *AT_ONCE, "--drain-timeout", "0") as running:
        await check_told(running, vllm, running.process.terminate)


async def test_a_second_signal_ends_the_waiting(vllm: FakeVllm) -> None:
    async with gateway("--policy-url", vllm.url, *NEVER, "--drain-timeout", "3600") as running:
        running.process.terminate()
        await running.unready()
        await check_told(running, vllm, running.process.terminate)


async def test_a_second_signal_ends_a_drain_that_has_begun(vllm: FakeVllm) -> None:
    async with gateway("--policy-url", vllm.url, *AT_ONCE, "--drain-timeout", "3600") as running:

        async def signal_twice() -> None:
            running.process.terminate()
            await running.refuses()
            running.process.terminate()

        signals: list[asyncio.Task[None]] = []
        await check_told(running, vllm, lambda: signals.append(asyncio.create_task(signal_twice())))
        await signals[0]


async def check_told(running: Running, vllm: FakeVllm, leave: Any) -> None:
    """A stream and a request that would take for ever hear that the gateway stops, and are aborted."""
    vllm.samples = [Sample("ab", gate=asyncio.Event())]
    async with running.http.stream("POST", CHAT, json=STREAM) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        vllm.hold.clear()
        vllm.arrived.clear()
        waiting = asyncio.create_task(running.http.post(CHAT, json=HI))
        await vllm.arrived.wait()
        leave()
        check_envelope(await waiting, 503, "stopping")
        last = events([line async for line in lines if line][-1])
        assert last[0]["error"]["code"] == "stopping"
    await running.ends_well()
    await vllm.wait_idle()
    assert vllm.aborted == 2


async def test_a_request_whose_body_is_still_coming_is_told_too(vllm: FakeVllm) -> None:
    async with gateway("--policy-url", vllm.url, *AT_ONCE, "--drain-timeout", "0") as running:
        host, port = running.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"
        )
        writer.write(head.encode() + b"{")
        await running.in_flight(1)
        running.process.terminate()
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"stopping"' in answer
        await running.ends_well()


async def test_a_killed_gateway_leaves_no_work_upstream(vllm: FakeVllm, rewards: FakeRewardServer) -> None:
    vllm.samples = [Sample("ab", gate=asyncio.Event()) for _ in range(8)]
    async with gateway("--policy-url", vllm.url, "--reward-url", rewards.url) as running:
        bodies = [HI, STREAM, {**HI, "best_of": 8}]
        vllm.hold.clear()
        asking = [asyncio.create_task(running.http.post(CHAT, json=body)) for body in bodies]
        await running.in_flight(3)
        while vllm.open < 3:
            vllm.arrived.clear()
            await vllm.arrived.wait()
        running.process.kill()
        lost = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(answer, httpx.TransportError) for answer in lost)
        await vllm.wait_idle()
        assert vllm.aborted >= 3


async def test_a_wrong_command_line_is_one_line_and_code_2() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "gateway", stderr=PIPE)
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert b"Traceback" not in stderr
    assert b"--policy-url" in stderr.splitlines()[-1]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_port_in_use_is_said_without_a_traceback(workers: str, vllm: FakeVllm) -> None:
    port = vllm.url.rsplit(":", 1)[1]
    argv = ["--policy-url", vllm.url, "--port", port, "--workers", workers]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "gateway", *argv, stderr=PIPE)
    _, stderr = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert b"Traceback" not in stderr
    assert b"Address already in use" in stderr.splitlines()[-1]
