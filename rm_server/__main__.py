"""Serves reward models over HTTP until SIGTERM or Ctrl-C, which end it with exit code 0;
SIGHUP looks for new versions of the checkpoints.

    python -m rm_server --model runs/demo/reward --port 8001

One line on stdout says when it is ready and where. What cannot be served ends it with one line on stderr
and exit code 2 (command line, port), 3 (checkpoint) or 7 (memory).
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
from collections.abc import Iterator, Sequence

import transformers

from rm_server.api_server import create_app
from rm_server.assembly import Assembly, builder
from rm_server.config import Config, parse_args
from rm_server.errors import ConfigError, StartError
from rm_server.intake import Intake
from rm_server.metrics import Metrics
from rm_server.reloading import Reloader
from rm_server.server import Server, remembered_sighup
from rm_server.shelf import Shelf
from rm_server.threads import loading_thread, threads
from rm_server.tracing import NoTracer, Tracer

BODIES_IN_WORK = 16  # of the largest size; the bound on memory that requests can take


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
    with (
        bind(config.host, config.port) as listener,
        traces(config.otlp_traces_endpoint) as tracer,
        threads(config.threads) as in_threads,
        loading_thread() as loading,
        remembered_sighup() as hung_up,
    ):
        metrics = Metrics()
        assembly = Assembly(builder(config, metrics, in_threads), config, metrics)
        shelf = Shelf([assembly.judge(source) for source in config.models], metrics)
        intake = Intake(
            metrics,
            max_body_bytes=config.max_body_bytes,
            max_total_bytes=BODIES_IN_WORK * config.max_body_bytes,
        )
        Server(
            create_app(shelf, metrics, intake, tracer, length_penalty=config.length_penalty),
            shelf,
            reload=Reloader(shelf, config.models, assembly.judge, loading, metrics).reload,
            reload_first=hung_up,
            drain_delay_s=config.drain_delay,
            ready_line=_ready_line(listener, shelf),
        ).run_on(listener)


@contextlib.contextmanager
def traces(endpoint: str | None) -> Iterator[Tracer]:
    """What is not asked for is not loaded. Raises ConfigError."""
    tracer: Tracer = NoTracer()
    if endpoint is not None:
        try:
            from rm_server.otlp import OtlpTracer
        except ImportError as error:
            raise ConfigError(
                "--otlp-traces-endpoint needs OpenTelemetry: pip install 'bonsai-gateway[tracing]'"
            ) from error
        tracer = OtlpTracer(endpoint)
    try:
        yield tracer
    finally:
        tracer.close()


def _ready_line(listener: socket.socket, shelf: Shelf) -> str:
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    names = ", ".join(f"{judge.name} version {judge.version}" for judge in shelf.judges())
    return f"rm_server ready: http://{address} ({names})"


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
