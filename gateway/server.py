"""uvicorn with our way to leave: unready at once, serving on, and no request cut off without a word.

Kubernetes takes an endpoint away and signals its process at the same time, so that requests still come for
some seconds; uvicorn alone refuses those. Here SIGTERM makes /health/ready a 503; for the drain delay
everything is answered as before, but with `Connection: close`; then the gateway stops listening, and requests
in flight have the drain time to finish. What is left gets a 503 `stopping` or an error event. A second signal
ends the waiting. Whoever was asked to leave ends with exit code 0.

SIGHUP reloads the configuration and drops nothing.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import uvicorn
from prometheus_client import Histogram
from starlette.types import ASGIApp

from gateway.drain import FAREWELL_S, Drain

KEEPALIVE_S = 75
"""Longer than what load balancers keep (60 s), so that they close first."""
POLL_S = 0.02
LAG_EVERY_S = 0.25


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the server needs of the application, and whom it tells."""

    drain: Drain
    reload: Callable[[], Awaitable[object]]
    lag: Histogram
    """Observes by how many seconds the event loop is late."""
    started: Callable[[], None]
    """Called when it listens."""


class Server(uvicorn.Server):
    """One process that serves until it is told to leave."""

    def __init__(self, app: ASGIApp, http: type[asyncio.Protocol], hooks: Hooks, drain_s: float) -> None:
        super().__init__(uvicorn_config(app, http))
        self._hooks = hooks
        self._drain_s = drain_s
        self._hurried = False
        self._reloads: set[asyncio.Task[None]] = set()
        self._one_reload = asyncio.Lock()

    @property
    def leaving(self) -> bool:
        """Whether it has been told to leave."""
        return self._hooks.drain.leaving

    def leave(self, delay_s: float) -> None:
        """Be unready from now on; stop listening in `delay_s`; finish what is in flight."""
        self._hooks.drain.leaving = True
        asyncio.get_running_loop().call_later(delay_s, self._stop_listening)

    def hurry(self) -> None:
        """Leave without waiting for anybody; requests in flight are told."""
        self._hooks.drain.leaving = True
        self._hurried = True
        self._stop_listening()

    def reload(self) -> None:
        """Reload the configuration, after the reload that is going on if there is one."""
        task = asyncio.create_task(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn, whose signal handlers would raise the signal again at the end: `gateway.signals`."""
        watch = asyncio.create_task(watch_lag(self._hooks.lag))
        await self._serve(sockets)
        watch.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        self._hooks.started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, let requests finish, tell the others, and end the application."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._quiet(self._drain_s, lambda: self._hurried)
        for task in list(self.server_state.tasks):
            task.cancel()
        await self._quiet(FAREWELL_S, lambda: False)
        await self.lifespan.shutdown()

    def _stop_listening(self) -> None:
        self.should_exit = True

    async def _quiet(self, longest_s: float, cut_short: Callable[[], bool]) -> None:
        """Until no connection is open and no request under way."""
        state = self.server_state
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                while (state.connections or state.tasks) and not cut_short():  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)

    async def _reload(self) -> None:
        async with self._one_reload:
            await self._hooks.reload()


def uvicorn_config(app: ASGIApp, http: type[asyncio.Protocol]) -> uvicorn.Config:
    """Our protocol and the quick loop; nothing is believed that proxies' headers say."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=http,
        ws="none",
        access_log=False,
        log_config=None,  # what it reports goes where everything goes: gateway.logs
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEPALIVE_S,
    )


async def watch_lag(lag: Histogram, every_s: float = LAG_EVERY_S) -> None:
    """Note how late the event loop is, again and again: whatever is ready to go on waits that long."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + every_s
        await asyncio.sleep(every_s)
        lag.observe(max(loop.time() - due, 0.0))
