"""`python -m gateway`: serve. `python -m gateway up`: start policy, reward model and gateway together.
`python -m gateway keys`: manage API keys. `python -m gateway check`: look whether all is right.

Stops on SIGTERM and Ctrl-C as `gateway.server` says, with exit code 0; SIGHUP reloads the configuration.
"""

import logging
import socket
import sys
from collections.abc import Callable, Sequence

from gateway.flags import Load, ServerOptions, read_flags
from gateway.logs import Logs

logger = logging.getLogger("gateway")


def main(argv: Sequence[str] | None = None) -> int:
    """Run until stopped; the exit code. What a command does not need it does not load: starting is quick."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["up"]:
        from gateway.launch import main as up  # the launcher starts `python -m gateway` itself

        return up(argv[1:])
    if argv[:1] == ["keys"]:
        from gateway.keys_cli import main as keys

        return keys(argv[1:])
    if argv[:1] == ["check"]:
        from gateway.check_cli import main as check

        return check(argv[1:])
    load, options = read_flags(argv)
    try:
        listener = _listen(options)
    except OSError as error:
        print(f"gateway: cannot listen on {options.host}:{options.port}: {error.strerror}", file=sys.stderr)
        return 2
    with listener, Logs(options.log) as log:
        return _serve(load, options, listener, log)


def _serve(load: Load, options: ServerOptions, listener: socket.socket, log: Logs) -> int:
    announce = _announcement(listener)
    if options.workers > 1:
        from gateway.supervisor import supervise  # serves nothing itself: small, and quickly there

        return supervise(load, options, listener, announce)
    from gateway.worker import serve

    return serve(load, options, listener, announce, log)


def _listen(options: ServerOptions) -> socket.socket:
    """Our own socket, because uvicorn's failure to bind would end the process with another exit code."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    return socket.create_server((options.host, options.port), family=family, backlog=2048)


def _announcement(listener: socket.socket) -> Callable[[], None]:
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    return lambda: logger.info("serving on %s", url)


if __name__ == "__main__":
    sys.exit(main())
