"""Everything that is logged while a world stands, whichever logger keeps it to itself."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

FROM_OUTSIDE = ("httpx", "httpcore", "openai", "aiohttp.access", "aiohttp.server", "asyncio.client")
"""Loggers of what plays the clients and the servers behind the gateway in the same process."""


@dataclass(frozen=True)
class Line:
    """What was logged, formatted."""

    level: int
    logger: str
    text: str


class Tap(logging.Handler):
    """Keeps lines."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[Line] = []

    def emit(self, record: logging.LogRecord) -> None:
        """See logging."""
        if not record.name.startswith(FROM_OUTSIDE):
            self.lines.append(Line(record.levelno, record.name, self.format(record)))


@contextmanager
def tapped() -> Iterator[Tap]:
    """Tap the root and every logger that does not hand its lines on; the gateway and its server at DEBUG."""
    tap = Tap()
    known = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    silent = logging.getLogger("uvicorn.access")  # with a handler it would write a line per request
    taps = [logging.root, *(logger for logger in known if not logger.propagate and logger is not silent)]
    talkative = {logging.getLogger(name): logging.getLogger(name).level for name in ("gateway", "uvicorn")}
    for logger in taps:
        logger.addHandler(tap)
    for logger in talkative:
        logger.setLevel(logging.DEBUG)
    try:
        yield tap
    finally:
        for logger in taps:
            logger.removeHandler(tap)
        for logger, level in talkative.items():
            logger.setLevel(level)
