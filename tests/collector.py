"""A collector of traces on a loopback port, in a thread: OTLP over HTTP, read with OpenTelemetry's types."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status


@dataclass(frozen=True)
class SpanSeen:
    """A span as it was sent."""

    name: str
    """Its kind before it, where it has one: `server chat tiny` asks `client chat tiny`."""
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    is_error: bool
    start: int
    end: int
    service: str


class Collector:
    """What was sent, in the order of arrival. With `status` it refuses all of it."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.requests = 0
        self.spans: list[SpanSeen] = []
        self.raw = b""
        self.arrived = threading.Event()

    def take(self, body: bytes) -> None:
        """A batch."""
        self.requests += 1
        if self.status == 200:
            self.raw += body
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = _attributes(resource.resource.attributes)["service.name"]
                for scope in resource.scope_spans:
                    self.spans += [_seen(span, service) for span in scope.spans]
        self.arrived.set()

    def named(self, name: str) -> list[SpanSeen]:
        """Those of that name, the earliest first."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start)

    def one(self, name: str) -> SpanSeen:
        """The only one of that name."""
        [span] = self.named(name)
        return span

    def under(self, parent: SpanSeen) -> list[str]:
        """The names of a span's children, the earliest first."""
        children = [span for span in self.spans if span.parent_id == parent.span_id]
        return [span.name for span in sorted(children, key=lambda span: span.start)]


@contextmanager
def collector() -> Iterator[Collector]:
    """One that listens for the time of the block."""
    seen = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            seen.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(seen.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Not on stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        seen.url = f"http://127.0.0.1:{server.server_port}/v1/traces"
        try:
            yield seen
        finally:
            server.shutdown()
            thread.join()


def _seen(span: WireSpan, service: str) -> SpanSeen:
    kind = WireSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower()
    return SpanSeen(
        name=span.name if kind == "internal" else f"{kind} {span.name}",
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_attributes(span.attributes),
        events=[(event.name, _attributes(event.attributes)) for event in span.events],
        is_error=span.status.code == Status.STATUS_CODE_ERROR,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        service=service,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    if value.HasField("array_value"):
        return [_value(item) for item in value.array_value.values]
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)
