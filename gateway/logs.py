"""The gateway's log: one line per request, and what `logging` reports, on stderr.

JSON objects, or text where a person looks at a terminal. `Logs` is entered once per process, around all of
its work: inside, everything that is logged goes through one sink that never blocks.
"""

import argparse
import logging
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from gateway.log_format import OWN, RequestLine, as_json, as_text, of_record
from gateway.log_sink import LogSink

LEVELS = ("debug", "info", "warning", "error")
STDERR = 2


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What is logged, and how."""

    format: Literal["auto", "json", "text"] = "auto"
    level: str = "info"
    requests: bool = True
    """One line per request."""


def add_log_flags(group: argparse._ArgumentGroup) -> None:
    """The flags that make LogOptions."""
    group.add_argument(
        "--log-format",
        choices=["auto", "json", "text"],
        default="auto",
        help="of the log on stderr; auto: text on a terminal, else one JSON object per line (default:"
        " %(default)s)",
    )
    group.add_argument(
        "--log-level", choices=LEVELS, default="info", help="what is logged at all (default: %(default)s)"
    )
    group.add_argument("--no-request-log", action="store_true", help="no line per request")


def log_options(args: argparse.Namespace) -> LogOptions:
    """What the flags say."""
    return LogOptions(format=args.log_format, level=args.log_level, requests=not args.no_request_log)


class Logs(logging.Handler):
    """The process's log while it is entered."""

    def __init__(self, options: LogOptions, fd: int = STDERR) -> None:
        super().__init__()
        text = options.format == "text" or (options.format == "auto" and os.isatty(fd))
        self._as_bytes = as_text if text else as_json
        self._own_level = getattr(logging, options.level.upper())
        self._requests = options.requests
        self.sink = LogSink(fd)
        self._before: tuple[int, int, list[logging.Handler]] | None = None

    def __enter__(self) -> Self:
        root, own = logging.getLogger(), logging.getLogger(OWN)
        self._before = (root.level, own.level, root.handlers)
        root.handlers = [self]
        # Below that other libraries tell of URLs and of what they send: not here.
        root.setLevel(max(self._own_level, logging.WARNING))
        own.setLevel(self._own_level)
        logging.captureWarnings(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        root, own = logging.getLogger(), logging.getLogger(OWN)
        assert self._before is not None
        root_level, own_level, root.handlers = self._before
        root.setLevel(root_level)
        own.setLevel(own_level)
        logging.captureWarnings(False)
        self.sink.close()

    def wants(self, level: int) -> bool:
        """Whether a request that ended so (`level_of`) gets a line."""
        return self._requests and level >= self._own_level

    def request(self, line: RequestLine) -> None:
        """A request has ended."""
        self.sink.put(self._as_bytes(line))

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        self.sink.put(self._as_bytes(of_record(record)))
