"""Every request gets its line in the log, however it ends, and nobody waits for a log that is stuck."""

import asyncio
import fcntl
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.drain import Drain
from gateway.logs import LogOptions, Logs
from gateway.metrics import Metrics
from gateway.middleware import Observe, Trace

CANARY = "canary-7f3a"
Handler = Callable[[Trace, Send], Awaitable[None]]


def app(handler: Handler) -> ASGIApp:
    """An application that does as it is told."""

    async def call(scope: Scope, _: Receive, send: Send) -> None:
        await handler(scope["state"]["trace"], send)

    return call


async def answer(_: Trace, send: Send) -> None:
    """200."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def request(observe: ASGIApp) -> httpx.Response:
    """One request whose every part holds what must not be seen."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(observe), base_url="http://test") as http:
        headers = {"authorization": f"Bearer {CANARY}", "x-request-id": "id-1", "x-other": CANARY}
        return await http.post(f"/{CANARY}?key={CANARY}", json={"prompt": CANARY}, headers=headers)


async def logged(path: Path, handler: Handler, **options: Any) -> list[dict[str, Any]]:
    """The lines after one request."""
    with path.open("w+b") as file:
        with Logs(LogOptions(**options), file.fileno()) as logs, suppress(asyncio.CancelledError):
            await request(Observe(app(handler), Metrics(), Drain(), logs))
        file.seek(0)
        text = file.read().decode()
    assert CANARY not in text
    return [json.loads(line) for line in text.splitlines()]


async def test_a_request_is_one_line_with_all_that_was_noted(tmp_path: Path) -> None:
    async def handler(trace: Trace, send: Send) -> None:
        trace.route, trace.model, trace.key = "/v1/chat/completions", "tiny", "key-1"
        trace.best_of, trace.scored, trace.degraded, trace.tokens = 4, 3, "deadline", 77
        trace.queue_s, trace.error_code = 0.25, "invalid_request"
        trace.replicas += ["a:1", "b:2", "a:1"]
        await answer(trace, send)

    (line,) = await logged(tmp_path / "log", handler)
    assert line.pop("ts").endswith("Z")
    assert line.pop("duration_ms") > 0
    assert line == {
        "level": "info",
        "event": "request",
        "request_id": "id-1",
        "method": "POST",
        "route": "/v1/chat/completions",
        "model": "tiny",
        "status": 200,
        "error_code": "invalid_request",
        "queue_ms": 250,
        "best_of": 4,
        "scored": 3,
        "degraded": "deadline",
        "tokens": 77,
        "replica": "a:1,b:2",
        "key": "key-1",
    }


async def test_a_path_that_nobody_knows_is_not_quoted(tmp_path: Path) -> None:
    (line,) = await logged(tmp_path / "log", answer)
    assert line["route"] == "other"


async def test_a_bug_is_two_lines_without_what_the_exception_says(tmp_path: Path) -> None:
    async def handler(_: Trace, __: Send) -> None:
        raise KeyError(CANARY)

    report, line = await logged(tmp_path / "log", handler)
    assert report["error"] == "KeyError"
    assert report["request_id"] == line["request_id"] == "id-1"
    assert report["traceback"][-1].endswith("in handler")
    assert (line["status"], line["late_code"], line["level"]) == (500, "500", "error")


async def test_a_client_that_left_has_a_line_too(tmp_path: Path) -> None:
    async def handler(_: Trace, __: Send) -> None:
        raise asyncio.CancelledError

    (line,) = await logged(tmp_path / "log", handler)
    assert (line["status"], line["level"]) == (499, "info")


@pytest.mark.parametrize("options", [{"requests": False}, {"level": "warning"}])
async def test_lines_that_nobody_wants_are_not_written(tmp_path: Path, options: dict[str, Any]) -> None:
    assert await logged(tmp_path / "log", answer, **options) == []


async def test_failures_are_logged_where_good_requests_are_not(tmp_path: Path) -> None:
    async def handler(trace: Trace, send: Send) -> None:
        trace.late_code = "stream_error"
        await answer(trace, send)

    (line,) = await logged(tmp_path / "log", handler, level="warning")
    assert line["late_code"] == "stream_error"


async def test_requests_are_answered_while_nobody_reads_the_log() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    metrics = Metrics()
    logs = Logs(LogOptions(), writing)
    observe = Observe(app(answer), metrics, Drain(), logs)
    scope = {"type": "http", "method": "GET", "headers": []}

    async def receive() -> Message:
        raise AssertionError

    async def send(_: Message) -> None:
        pass

    for _ in range(6000):
        await observe(dict(scope), receive, send)
    dropped = metrics.registry.get_sample_value("bonsai_gateway_log_lines_dropped_total")
    assert dropped == logs.sink.dropped > 1000
    logs.sink.close(0)
    os.close(reading)
    logs.sink.close(10)
    os.close(writing)


async def test_a_full_disk_is_counted_and_nothing_else() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    metrics = Metrics()
    with Logs(LogOptions(), full) as logs:
        for _ in range(10):
            assert (await request(Observe(app(answer), metrics, Drain(), logs))).status_code == 200
    os.close(full)
    assert metrics.registry.get_sample_value("bonsai_gateway_log_lines_dropped_total") == 10
