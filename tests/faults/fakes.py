"""The fakes of tests/gateway with more ways to misbehave, and a count of what they had to do at once.

A `Behaviour` answers in place of the fake, for every request that generates or judges.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.gateway.fake_servers import FakeRewardServer, FakeVllm, LoopbackServer

Behaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]

EVENTS = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}


def at_once() -> float:
    """No time."""
    return 0.0


@dataclass
class Load:
    """Samples under way, over all replicas of the policy."""

    now: int = 0
    most: int = 0

    @contextmanager
    def of(self, samples: int) -> Iterator[None]:
        """Around the generation of so many."""
        self.now += samples
        self.most = max(self.most, self.now)
        try:
            yield
        finally:
            self.now -= samples


class Watched(LoopbackServer):
    """A fake that knows its connections."""

    @property
    def connections(self) -> int:
        """Those that stand, idle ones included."""
        runner = self._runner
        return 0 if runner is None or runner.server is None else len(runner.server.connections)

    async def ensure_started(self) -> None:
        """Start it unless it runs."""
        if self._runner is None:
            await self.start()


class FaultyVllm(Watched, FakeVllm):
    """A policy server with a behaviour."""

    def __init__(self, load: Load) -> None:
        super().__init__()
        self.behaviour: Behaviour | None = None
        self.calls = 0
        """Requests to generate."""
        self.takes: Callable[[], float] = at_once
        """Seconds until an answer begins, drawn for each."""
        self._load = load

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        with self._load.of((await request.json()).get("n") or 1):
            await asyncio.sleep(self.takes())
            try:
                return await (self.behaviour or super()._generate)(request)
            except ConnectionError:
                self.aborted += 1
                return web.Response()


class FaultyJudge(Watched, FakeRewardServer):
    """A reward server with a behaviour."""

    def __init__(self) -> None:
        super().__init__()
        self.behaviour: Behaviour | None = None
        self.takes: Callable[[], float] = at_once

    async def _score(self, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(self.takes())
        if self.behaviour is not None:
            return await self.behaviour(request)
        return await super()._score(request)


class Trap(LoopbackServer):
    """A server that nobody should ever ask."""

    def routes(self) -> list[web.RouteDef]:
        """See LoopbackServer."""
        return [web.route("*", "/{path:.*}", self._answer)]

    async def _answer(self, request: web.Request) -> web.Response:
        self.arrived.set()
        return web.json_response({"choices": []})


def heal(server: FaultyVllm | FaultyJudge) -> None:
    """Make it behave again."""
    server.behaviour, server.takes = None, at_once
    server.refusal = None
    server.hold.set()
    server.healthy = True
    if isinstance(server, FaultyVllm):
        server.samples = server.raw_body = server.raw_stream = None
        server.break_after = server.error_event_after = None
        server.detokenize_hold.set()
    else:
        server.rewards, server.raw_scores, server.extra = {}, None, {}
        server.max_length = float("inf")


def answering(body: bytes, status: int = 200, headers: Mapping[str, str] = JSON) -> Behaviour:
    """This answer, whatever was asked."""

    async def behave(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, status=status, headers=headers)

    return behave


def streaming(pieces: Sequence[bytes], *, then: Behaviour | None = None) -> Behaviour:
    """These pieces of a stream, each written on its own; at the end `then` takes the open connection."""

    async def behave(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=EVENTS)
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await _let_others_read()
        if then is not None:
            await then(request)
        return response

    return behave


async def vanishing(request: web.Request) -> web.StreamResponse:
    """Cut the connection with a reset."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def hanging_up(request: web.Request) -> web.StreamResponse:
    """Close the connection as if all were said."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def silent(_: web.Request) -> web.StreamResponse:
    """Say no more, for ever."""
    await asyncio.Event().wait()
    raise AssertionError("nothing sets this event")


def raw(data: bytes) -> Behaviour:
    """These bytes on the wire, then the end."""

    async def behave(request: web.Request) -> web.StreamResponse:
        transport: Any = request.transport
        transport.write(data)
        transport.close()
        return web.Response()

    return behave


async def _let_others_read() -> None:
    """Give the gateway, which runs in the same loop, its turn; else the pieces arrive as one."""
    for _ in range(3):
        await asyncio.sleep(0)
