"""A process that serves: the only one, or one of several that a supervisor keeps.

`python -m gateway.worker FD` shares with its siblings the listening socket, the metrics and, through the
supervisor at the other end of FD, the limits. From there it hears of reloads and of the end. When the
supervisor is gone it ends at once: the limits would not hold any more, and nobody would end it.
"""

import asyncio
import gc
import logging
import shutil
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop
from fastapi import FastAPI

from gateway.api_server import create_app
from gateway.config import ConfigError, GatewayConfig
from gateway.desk_wire import (
    Channel,
    Granted,
    Hurry,
    Leave,
    Refused,
    Reload,
    Start,
    ToWorker,
    Up,
    first_message,
)
from gateway.flags import Load, ServerOptions
from gateway.http_limits import HttpLimits, connections_for, raise_open_files
from gateway.http_protocol import http_protocol
from gateway.logs import Logs
from gateway.metrics import Metrics, share
from gateway.remote_desk import RemoteDesk
from gateway.server import Hooks, Server
from gateway.signals import obey

logger = logging.getLogger("gateway")
GC_THRESHOLDS = (20_000, 50, 100)
"""A request makes some hundred objects that reference counting frees: Python's own 700 would collect every
few requests, for a tenth of the time."""


def serve(
    load: Load, options: ServerOptions, listener: socket.socket, announce: Callable[[], None], log: Logs
) -> int:
    """Serve alone until told to leave; the exit code."""

    async def run() -> None:
        server = _server(create_app(load(), load=load, log=log, examine=True), options, announce)
        obey(server, options.drain_delay_s)
        await server.serve([listener])

    return _run(run)


class Worker:
    """One of several."""

    def __init__(self, start: Start, end: socket.socket, log: Logs) -> None:
        self._log = log
        self._start = start
        self._end = end
        self._config = start.config
        self._config_error: str | None = None
        self._desk: RemoteDesk
        self._server: Server

    async def run(self) -> None:
        """Serve until told to leave, or until the supervisor is gone."""
        channel: Channel[ToWorker] = Channel(ToWorker, self._hear)
        self._desk = RemoteDesk(channel.send)
        app = create_app(self._config, load=self._load, admission=self._desk, log=self._log, examine=True)
        self._server = _server(app, self._start.options, lambda: channel.send(Up()))
        obey(self._server, self._start.options.drain_delay_s, hurry_on_second=False)
        await channel.connect(self._end)
        orphaned = asyncio.create_task(self._when_orphaned(channel))
        listener = socket.socket(fileno=self._start.listener)
        await self._server.serve([listener])
        orphaned.cancel()

    async def _when_orphaned(self, channel: Channel[ToWorker]) -> None:
        await channel.lost.wait()
        self._desk.close()
        self._server.hurry()
        shutil.rmtree(self._start.folder, ignore_errors=True)

    def _hear(self, message: ToWorker) -> None:
        match message:
            case Granted() | Refused():
                self._desk.hear(message)
            case Leave(delay_s):
                self._server.leave(delay_s)
            case Hurry():
                self._server.hurry()
            case Reload(config, error):
                self._config, self._config_error = config or self._config, error
                self._server.reload()

    def _load(self) -> GatewayConfig:
        """What the supervisor read last."""
        if self._config_error is not None:
            raise ConfigError(self._config_error)
        return self._config


def main(argv: list[str]) -> int:
    """A supervisor has started this."""
    end = socket.socket(fileno=int(argv[0]))
    try:
        start = first_message(end)
    except EOFError:
        return 0
    share(Path(start.folder), start.number)
    with Logs(start.options.log) as log:
        return _run(Worker(start, end, log).run)


def _server(app: FastAPI, options: ServerOptions, started: Callable[[], None]) -> Server:
    metrics: Metrics = app.state.service.metrics
    limits = HttpLimits(connections=connections_for(raise_open_files()))
    hooks = Hooks(
        drain=app.state.service.drain,
        reload=app.state.instance.reload,
        lag=metrics.lag_seconds,
        started=started,
    )
    gc.collect()
    gc.freeze()  # what is there now stays: collections walk requests only, and pause for less
    gc.set_threshold(*GC_THRESHOLDS)
    return Server(
        app, http_protocol(limits, lambda code: metrics.errors.labels(code).inc()), hooks, options.drain_s
    )


def _run(work: Callable[[], Coroutine[Any, Any, None]]) -> int:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work())
    except ConfigError as error:
        logger.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
