"""`python -m gateway`: serve. `python -m gateway up`: start policy, reward model and gateway together.

Stops on SIGTERM and Ctrl-C: no new connections, requests in flight finish within --drain-timeout, exit code
0.
"""

import gc
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn

from gateway.api_server import create_app
from gateway.drain import Drain
from gateway.flags import ServerOptions, read_flags

KEEPALIVE_S = 75
"""Longer than what load balancers keep (60 s), so that they close first."""


class Server(uvicorn.Server):
    """uvicorn that ends with exit code 0 when it was asked to end; its own server re-raises the signal. From
    that moment on it is not ready."""

    def __init__(self, config: uvicorn.Config, drain: Drain) -> None:
        super().__init__(config)
        self._drain = drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn."""
        self._drain.leaving = True
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ask for a graceful end on SIGTERM and SIGINT; on a second SIGINT for a quick one."""
        handled = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until stopped; the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["up"]:
        from gateway.launch import main as up  # the launcher starts `python -m gateway` itself

        return up(argv[1:])
    config, options = read_flags(argv)
    gc.freeze()  # what was imported stays: collections then walk requests only, and pause for less
    app = create_app(config)
    server = Server(
        uvicorn.Config(
            app,
            host=options.host,
            port=options.port,
            loop="uvloop",
            http="httptools",
            ws="none",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEPALIVE_S,
            timeout_graceful_shutdown=options.drain_s,
        ),
        app.state.service.drain,
    )
    try:
        listener = _listen(options)
    except OSError as error:
        print(f"gateway: cannot listen on {options.host}:{options.port}: {error.strerror}", file=sys.stderr)
        return 2
    print(
        f"gateway: serving on http://{options.host}:{listener.getsockname()[1]}", file=sys.stderr, flush=True
    )
    with listener:
        server.run(sockets=[listener])
    return 0


def _listen(options: ServerOptions) -> socket.socket:
    """Our own socket, because uvicorn's failure to bind would end the process with another exit code."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    return socket.create_server((options.host, options.port), family=family, backlog=2048)


if __name__ == "__main__":
    sys.exit(main())
