"""uvicorn with our way to leave and to reload.

SIGTERM and SIGINT: unready at once, serving on for the drain delay (none after SIGINT: no load balancer needs
time to notice), then no new connections; what was asked for is answered, for 30 s at most; exit code 0. A
second signal does not wait for anybody. SIGHUP: look for new versions of the checkpoints, and drop nothing;
one that comes while the first are loaded is heeded afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from rm_server.shelf import Shelf

KEEP_ALIVE_S = 75  # longer than clients' pools keep a connection, so that it is they who close it
DRAIN_S = 30


@contextlib.contextmanager
def remembered_sighup() -> Iterator[threading.Event]:
    """Set when SIGHUP comes, which otherwise ends a process, before a server hears it. Main thread only."""
    came = threading.Event()
    before = signal.signal(signal.SIGHUP, lambda *_: came.set())
    try:
        yield came
    finally:
        signal.signal(signal.SIGHUP, before)


class Server(uvicorn.Server):
    """uvicorn, which ends with exit code 0 when asked to stop and says when it is ready."""

    def __init__(
        self,
        app: ASGIApp,
        shelf: Shelf,
        *,
        reload: Callable[[], Awaitable[None]],
        reload_first: threading.Event,
        drain_delay_s: float,
        ready_line: str,
    ) -> None:
        super().__init__(_config(app))
        self._shelf = shelf
        self._reload = reload
        self._reload_first = reload_first
        self._drain_delay_s = drain_delay_s
        self._ready_line = ready_line
        self._reloads: set[asyncio.Future[None]] = set()

    def run_on(self, listener: socket.socket) -> None:
        """Serves on a bound socket until asked to stop."""
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self.serve([listener]))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and the line."""
        await super().startup(sockets)
        if self.started:
            print(self._ready_line, flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would raise SIGTERM again at the end, and exit 143."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._leave, self._drain_delay_s)
        loop.add_signal_handler(signal.SIGINT, self._leave, 0.0)
        loop.add_signal_handler(signal.SIGHUP, self._look_again)
        if self._reload_first.is_set():
            self._look_again()
        yield

    def _leave(self, delay_s: float) -> None:
        if self._shelf.leaving:
            self.force_exit = self.should_exit = True
        self._shelf.leaving = True
        asyncio.get_running_loop().call_later(delay_s, self._stop_listening)

    def _stop_listening(self) -> None:
        self.should_exit = True

    def _look_again(self) -> None:
        task = asyncio.ensure_future(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )
