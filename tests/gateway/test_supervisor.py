"""Several workers as real processes: one gateway to those outside."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.supervisor import pause_s
from tests.gateway.fake_servers import FakeVllm, Sample
from tests.gateway.processes import Running, gateway, gone, paused
from tests.gateway.stack import CHAT, check_envelope, events

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
STREAM = {**HI, "stream": True}
TWO = ("--workers", "2", "--drain-delay", "0")
OKAY = {"route": CHAT, "code": "200"}


@pytest.fixture
async def vllm() -> AsyncGenerator[FakeVllm, None]:
    server = FakeVllm()
    await server.start()
    yield server
    await server.stop()


async def ask(running: Running, count: int) -> list[httpx.Response]:
    """So many requests at once, each on a connection of its own."""
    return await asyncio.gather(*(running.http.post(CHAT, json=HI) for _ in range(count)))


async def arrived(vllm: FakeVllm, count: int) -> None:
    """Until so many requests have come through. (A gauge would not do: who is paused may stand in the midst
    of an answer to a look at it.)"""
    async with asyncio.timeout(30):
        while sum(request.path == CHAT for request in vllm.requests) < count:
            vllm.arrived.clear()
            await vllm.arrived.wait()


async def until(running: Running, value: float, name: str, **labels: str) -> None:
    """Until a metric has this value."""
    async with asyncio.timeout(30):
        while await running.metric(name, **labels) != value:
            pass


async def replaced(running: Running, pid: int) -> None:
    """Until the worker is gone and another has its place."""
    others = {*running.workers()} - {pid}
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        while pid in (now := running.workers()) or len(now) == len(others):
            assert await running.metric("build_info") == 1  # the others serve on


async def test_workers_count_as_one(vllm: FakeVllm, tmp_path: Path) -> None:
    argv = ("--policy-url", vllm.url, "--workers", "4", "--drain-delay", "0")
    async with gateway(*argv, TMPDIR=str(tmp_path)) as running:
        first = running.workers()
        assert len(first) == 4
        for pid in first:  # each answers some: the other three are not there
            with paused(*{*first} - {pid}):
                assert {answer.status_code for answer in await ask(running, 10)} == {200}
        assert await running.metric("requests_total", **OKAY) == 40
        await replaced(running, first[1])
        assert await running.metric("requests_total", **OKAY) == 40
        assert {answer.status_code for answer in await ask(running, 40)} == {200}
        assert await running.metric("requests_total", **OKAY) == 80
        assert await running.metric("queue_seconds_count") == 80
        assert await running.metric("event_loop_lag_seconds_count") > 0
        assert await running.metric("candidate_slots_in_use") == 0
        await running.in_flight(0)
        assert set(running.workers()) - set(first) != set()
        running.process.terminate()
        await running.ends_well()
    assert os.listdir(tmp_path) == []


async def test_limits_hold_across_workers_even_when_one_dies(vllm: FakeVllm) -> None:
    limits = ("--max-best-of", "1", "--max-candidates-per-request", "1", "--max-queue", "0")
    argv = ("--policy-url", vllm.url, *TWO, *limits, "--max-concurrent-candidates", "3")
    async with gateway(*argv) as running:
        one, other = running.workers()
        vllm.hold.clear()
        with paused(other):
            lost = asyncio.create_task(ask(running, 2))
            await arrived(vllm, 2)
        with paused(one):
            answers = asyncio.create_task(ask(running, 4))
            await arrived(vllm, 3)
            await until(running, 3, "rejected_total", reason="queue_full")
        os.kill(one, signal.SIGKILL)
        await gone(one)
        with pytest.raises(httpx.TransportError):
            await lost
        await until(running, 1, "candidate_slots_in_use")
        again = asyncio.create_task(ask(running, 2))  # the dead one's slots are free
        await arrived(vllm, 5)
        vllm.hold.set()
        assert sorted(answer.status_code for answer in await answers) == [200, 503, 503, 503]
        assert [answer.status_code for answer in await again] == [200, 200]


async def test_workers_leave_together_and_lose_nothing(vllm: FakeVllm) -> None:
    argv = ("--policy-url", vllm.url, "--workers", "2", "--drain-delay", "3600")
    async with gateway(*argv) as running:
        one, other = running.workers()
        vllm.hold.clear()
        asking = []
        for number, pid in enumerate((one, other)):
            with paused(pid):
                asking += [asyncio.create_task(ask(running, 5))]
                await arrived(vllm, 5 * (number + 1))
        running.process.terminate()
        for pid in (one, other):
            with paused(pid):
                await running.unready()
                check_envelope(await running.http.get("/health/ready"), 503, "not_ready")
                assert (await running.http.get("/health")).headers["connection"] == "close"
        vllm.hold.set()
        for answers in asking:
            assert {answer.status_code for answer in await answers} == {200}
        running.process.terminate()
        await running.ends_well()


async def test_a_service_manager_that_signals_every_process_hurries_nobody(vllm: FakeVllm) -> None:
    async with gateway("--policy-url", vllm.url, *TWO) as running:
        vllm.hold.clear()
        asking = asyncio.create_task(ask(running, 6))
        await arrived(vllm, 6)
        for pid in (*running.workers(), running.process.pid):
            os.kill(pid, signal.SIGTERM)
        await running.refuses()
        vllm.hold.set()
        assert {answer.status_code for answer in await asking} == {200}
        await running.ends_well()


async def test_a_second_signal_ends_the_waiting(vllm: FakeVllm) -> None:
    async with gateway("--policy-url", vllm.url, *TWO, "--drain-timeout", "3600") as running:
        vllm.hold.clear()
        asking = asyncio.create_task(ask(running, 6))
        await arrived(vllm, 6)
        running.process.terminate()
        await running.refuses()
        running.process.terminate()
        for answer in await asking:
            check_envelope(answer, 503, "stopping")
        await running.ends_well()


async def test_workers_do_not_outlive_their_supervisor(vllm: FakeVllm, tmp_path: Path) -> None:
    vllm.samples = [Sample("ab", gate=asyncio.Event())]
    async with gateway("--policy-url", vllm.url, *TWO, TMPDIR=str(tmp_path)) as running:
        async with running.http.stream("POST", CHAT, json=STREAM) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            workers = running.workers()
            running.process.kill()
            last = events([line async for line in lines if line][-1])
            assert last[0]["error"]["code"] == "stopping"
        for pid in workers:
            await gone(pid)
        await running.refuses()
    await vllm.wait_idle()
    assert vllm.aborted == 1
    assert os.listdir(tmp_path) == []


async def test_a_reload_reaches_every_worker_and_drops_no_stream(vllm: FakeVllm, tmp_path: Path) -> None:
    gate = asyncio.Event()
    vllm.samples = [Sample("ab", gate=gate)]
    file = tmp_path / "gateway.yaml"
    good = f"policies: [{{name: tiny, urls: ['{vllm.url}']}}]\n"
    file.write_text(good)
    async with gateway("--config", str(file), *TWO) as running:
        _, other = running.workers()
        with paused(other):
            streaming = asyncio.create_task(stream(running))
            await arrived(vllm, 1)
        file.write_text(good + "default_best_of: none\n")
        running.process.send_signal(signal.SIGHUP)
        await until(running, 2, "reloads_total", result="refused")
        await replaced(running, other)  # with what was good
        file.write_text(good + "limits: {max_best_of: 5}\n")
        running.process.send_signal(signal.SIGHUP)
        await until(running, 2, "reloads_total", result="done")
        gate.set()
        assert (await streaming)[-1] == "[DONE]"
        running.process.terminate()
        await running.ends_well()


async def stream(running: Running) -> list[Any]:
    """The events of one."""
    return events((await running.http.post(CHAT, json=STREAM)).text)


async def test_a_first_start_that_fails_is_said_once(vllm: FakeVllm, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    argv = ["--policy-url", vllm.url, *TWO, "--port", "0", "--keys", str(keys)]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "gateway", *argv, stderr=PIPE)
    _, stderr = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert [str(keys).encode() in line for line in stderr.splitlines()] == [True]


def test_pauses_grow_while_workers_die_young() -> None:
    assert [pause_s(deaths) for deaths in (0, 1, 2, 3, 4, 7, 8, 100_000)] == [0, 0.25, 0.5, 1, 2, 16, 30, 30]
