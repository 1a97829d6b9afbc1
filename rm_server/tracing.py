"""The seam to tracing. A `Span` here is one that nobody records: all of its methods do nothing, which is what
a server without --otlp-traces-endpoint pays for. `rm_server.otlp` has those that OpenTelemetry records;
nothing of that library is loaded before it is asked for.

The span that work is done for stands in a context variable; whoever does it may hang its own under it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Protocol, Self

Attributes = Mapping[str, str | int | float]
"""Numbers and names. Never a text that is judged."""


class Span:
    """A piece of work, under another one; this one is not recorded. In its block it is the current one, at
    whose end it ends, and tells of the exception that ended it."""

    __slots__ = ()

    @property
    def exemplar(self) -> dict[str, str] | None:
        """What a metric's bucket remembers of it."""
        return None

    def child(self, name: str, attributes: Attributes, *, client: bool = False) -> Span:
        """The beginning of a part; `client` is one that another server does."""
        return self

    def past(self, name: str, started: float, ended: float, attributes: Attributes) -> None:
        """A part that is over; times are time.perf_counter's."""

    def set(self, attributes: Attributes) -> None:
        """Say more about it."""

    def judged_by(self, name: str, version: str) -> None:
        """Of a request: whose rewards it gets; the name becomes part of the span's."""

    def fail(self, kind: str) -> None:
        """It went wrong."""

    def headers(self) -> dict[str, str]:
        """What makes another server's spans its children: W3C's `traceparent` and `tracestate`."""
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


NO_SPAN = Span()
current_span: ContextVar[Span] = ContextVar("current_span", default=NO_SPAN)
"""For spans to set; all others ask `current`."""


class Tracer(Protocol):
    """What begins the spans of requests."""

    def request(self, operation: str, headers: Mapping[str, str], attributes: Attributes) -> Span:
        """A request came in; its client may have begun the trace that this is part of."""

    def close(self) -> None:
        """Send what has been recorded, within a bounded time. Blocks for that long."""


class NoTracer:
    """Records nothing."""

    def request(self, operation: str, headers: Mapping[str, str], attributes: Attributes) -> Span:
        """See Tracer."""
        return NO_SPAN

    def close(self) -> None:
        """See Tracer."""


def current() -> Span:
    """The span that this is done for; `NO_SPAN` where there is none."""
    return current_span.get()
