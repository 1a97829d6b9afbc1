"""The seam to tracing. A `Span` here is one that nobody records: all of its methods do nothing, which is what
a gateway without a traces endpoint pays for. `gateway.otlp` has those that OpenTelemetry records; nothing of
that library is loaded before it is asked for.

The request's span stands in a context variable, so that whatever is done for the request, in its tasks too,
can hang its own spans under it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import urlsplit

Value = str | bool | int | float | Sequence[str] | Sequence[float]
Attributes = Mapping[str, Value | None]
"""None is left out. Never a text of a client's or of a model's."""
_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}


class Span:
    """A piece of work with a beginning and an end, under another one; this one is not recorded. As a context
    manager it ends with the block, and tells of the exception that ended it."""

    __slots__ = ()

    recording = False
    """Whether somebody will see it: if not, attributes need not be gathered."""
    trace_id: str | None = None
    """Of the trace that it belongs to, where that one is recorded."""

    @property
    def exemplar(self) -> dict[str, str] | None:
        """What a metric's bucket remembers of it."""
        return None

    def child(self, name: str, attributes: Attributes, *, client: bool = False) -> "Span":
        """The beginning of a part; `client` is one that another server does."""
        return self

    def name(self, name: str) -> None:
        """Call it by another name."""

    def set(self, attributes: Attributes) -> None:
        """Say more about it."""

    def event(self, name: str, attributes: Attributes) -> None:
        """Something happened within it, just now."""

    def fail(self, kind: str) -> None:
        """It went wrong."""

    def headers(self) -> dict[str, str]:
        """What makes another server's spans its children: W3C's `traceparent` and `tracestate`."""
        return {}

    def end(self) -> None:
        """It is over."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


NO_SPAN = Span()


class Tracer(Protocol):
    """What begins the spans of requests."""

    def request(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> Span:
        """A request came in; its client may have begun the trace that this is part of."""

    def close(self) -> None:
        """Send what has been recorded, within a bounded time. Blocks for that long."""


_request: ContextVar[Span] = ContextVar("_request", default=NO_SPAN)


def current() -> Span:
    """The span of the request that this is done for; `NO_SPAN` where there is none."""
    return _request.get()


@contextmanager
def under(span: Span) -> Iterator[None]:
    """In this block `span` is the current one."""
    token = _request.set(span)
    try:
        yield
    finally:
        _request.reset(token)


def operation(path: str) -> str:
    """Of a path: the word that the conventions for generative AI have for it, or else its own."""
    return _OPERATIONS.get(path, path[1:])


def call(url: str, path: str, model: str | None, attributes: Attributes) -> Span:
    """The beginning of a call to the server at `url`, which is to get the span's `headers`."""
    parent = _request.get()
    if parent is NO_SPAN:
        return parent
    parts, what = urlsplit(url), operation(path)
    return parent.child(
        f"{what} {model}" if model else what,
        {
            "gen_ai.operation.name": what,
            "gen_ai.request.model": model,
            "server.address": parts.hostname,
            "server.port": parts.port or (443 if parts.scheme == "https" else 80),
            **attributes,
        },
        client=True,
    )
