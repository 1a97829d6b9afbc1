"""The server around any application; how a whole gateway leaves is in test_main.py and test_supervisor.py."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.drain import Drain
from gateway.metrics import Metrics
from gateway.server import Hooks, Server, watch_lag


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """An application that says 204 to everything."""
    if scope["type"] == "lifespan":
        for stage in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{stage}.complete"})
        return
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def nothing() -> None:
    """A reload that does nothing."""


def server_of(started: asyncio.Event, reload: Callable[[], Awaitable[object]] = nothing) -> Server:
    hooks = Hooks(drain=Drain(), reload=reload, lag=Metrics().lag_seconds, started=started.set)
    return Server(answer, HttpToolsProtocol, hooks, drain_s=30.0)


async def test_it_says_when_it_serves_and_ends_when_told() -> None:
    started = asyncio.Event()
    server = server_of(started)
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()
    serving = asyncio.create_task(server.serve([listener]))
    await started.wait()
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"http://{host}:{port}/")).status_code == 204
        assert not server.leaving
        server.leave(0.0)
        assert server.leaving
        await asyncio.wait_for(serving, 10)  # though the client keeps its connection


async def test_reloads_happen_one_after_the_other() -> None:
    gate, begun, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    seen: list[str] = []

    async def reload() -> None:
        seen.append("begin")
        begun.set()
        await gate.wait()
        seen.append("end")
        if seen.count("end") == 2:
            ended.set()

    server = server_of(asyncio.Event(), reload)
    server.reload()
    server.reload()
    await begun.wait()
    await asyncio.sleep(0)
    assert seen == ["begin"]
    gate.set()
    await asyncio.wait_for(ended.wait(), 10)
    assert seen == ["begin", "end", "begin", "end"]


async def test_a_blocked_event_loop_shows() -> None:
    metrics = Metrics()
    watching = asyncio.create_task(watch_lag(metrics.lag_seconds, every_s=0.001))
    await asyncio.sleep(0)
    time.sleep(0.05)  # noqa: ASYNC251  # this is what is to be noticed
    lag = "bonsai_gateway_event_loop_lag_seconds"
    await asyncio.wait({watching}, timeout=0.01)
    watching.cancel()
    assert (metrics.registry.get_sample_value(f"{lag}_sum") or 0.0) >= 0.045
