"""Serves reward models over HTTP until SIGTERM or Ctrl-C, which end it with exit code 0.

    python -m rm_server --model runs/demo/reward --port 8001

One line on stdout says when it is ready and where. What cannot be served ends it with one line on stderr
and exit code 2 (command line, port), 3 (checkpoint) or 7 (memory).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import transformers
import uvicorn
from starlette.types import ASGIApp

from rm_server.api_server import create_app
from rm_server.config import Config, parse_args
from rm_server.errors import ConfigError, StartError
from rm_server.intake import Intake
from rm_server.loading import Threads, load
from rm_server.metrics import Metrics
from rm_server.reward_model import use_threads

KEEP_ALIVE_S = 75  # longer than clients' pools keep a connection, so that it is they who close it
DRAIN_S = 30
BODIES_IN_WORK = 16  # of the largest size; the bound on memory that requests can take


class Server(uvicorn.Server):
    """uvicorn, which ends with exit code 0 when asked to stop and says when it is ready."""

    def __init__(self, config: uvicorn.Config, ready_line: str) -> None:
        super().__init__(config)
        self._ready_line = ready_line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and the line."""
        await super().startup(sockets)
        if self.started:
            print(self._ready_line, flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stops at the first SIGTERM or SIGINT; uvicorn's own would raise it again and exit 143."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        self.force_exit = self.should_exit  # a second signal does not wait for anybody
        self.should_exit = True


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        config = parse_args(sys.argv[1:] if arguments is None else arguments)
        serve(config)
    except StartError as error:
        print(f"rm_server: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 0  # while loading; once serving, Ctrl-C stops the server in order
    return 0


def serve(config: Config) -> None:
    """Binds, loads, serves. The port is taken first: a port in use should not cost the loading."""
    with bind(config.host, config.port) as listener:
        use_threads(config.threads)
        with ThreadPoolExecutor(1, "tokenize") as tokenizing, ThreadPoolExecutor(1, "score") as scoring:
            metrics = Metrics()
            threads = Threads(tokenizing, scoring)
            models = {source.name: load(source, config, metrics, threads) for source in config.models}
            intake = Intake(
                metrics,
                max_body_bytes=config.max_body_bytes,
                max_total_bytes=BODIES_IN_WORK * config.max_body_bytes,
            )
            cards = ", ".join(f"{m.card.name} version {m.card.version}" for m in models.values())
            host, port = listener.getsockname()[:2]
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            run(create_app(models, metrics, intake), listener, f"rm_server ready: http://{address} ({cards})")


def run(app: ASGIApp, listener: socket.socket, ready_line: str) -> None:
    """Serves `app` on a bound socket until asked to stop."""
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )
    server = Server(config, ready_line)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(server.serve([listener]))


def bind(host: str, port: int) -> socket.socket:
    """A socket on `host`:`port` that does not listen yet. Raises ConfigError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as on_failure:
            listener = on_failure.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            on_failure.pop_all()
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return listener


if __name__ == "__main__":
    sys.exit(main())
