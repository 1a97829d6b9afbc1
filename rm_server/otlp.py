"""Traces by OpenTelemetry, sent over HTTP as protobuf (OTLP).

Requests never wait for the collector: a thread sends batches out of a bounded queue, and what does not fit is
dropped. That the collector does not take them is said once, as is that it does again. Sampling, the sizes of
queue and batches, and a collector's headers come from OpenTelemetry's own variables of the environment.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextvars import Token
from importlib.metadata import version
from types import TracebackType
from typing import Self

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from rm_server.errors import RmServerError
from rm_server.tracing import Attributes, Span, current_span

logger = logging.getLogger(__name__)
FLUSH_S = 2.0  # at the end, for what has been recorded and not yet sent
_PROPAGATOR = TraceContextTextMapPropagator()


class OtlpSpan(Span):
    """A span of OpenTelemetry's."""

    __slots__ = ("_clock_ns", "_context", "_operation", "_span", "_token", "_tracer")

    def __init__(self, tracer: trace.Tracer, span: trace.Span, clock_ns: int, operation: str = "") -> None:
        self._tracer = tracer
        self._span = span
        self._clock_ns = clock_ns  # time.perf_counter's zero since the epoch, the same for a whole request
        self._operation = operation
        self._context = trace.set_span_in_context(span, Context())
        self._token: Token[Span] | None = None

    @property
    def exemplar(self) -> dict[str, str] | None:
        context = self._span.get_span_context()
        return {"trace_id": trace.format_trace_id(context.trace_id)} if context.trace_flags.sampled else None

    def child(self, name: str, attributes: Attributes, *, client: bool = False) -> OtlpSpan:
        kind = SpanKind.CLIENT if client else SpanKind.INTERNAL
        span = self._tracer.start_span(name, self._context, kind, {**attributes})
        return OtlpSpan(self._tracer, span, self._clock_ns)

    def past(self, name: str, started: float, ended: float, attributes: Attributes) -> None:
        begin, end = (self._clock_ns + round(seconds * 1e9) for seconds in (started, ended))
        part = self._tracer.start_span(name, self._context, attributes={**attributes}, start_time=begin)
        part.end(end)

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes({**attributes})

    def judged_by(self, name: str, version: str) -> None:
        self._span.update_name(f"{self._operation} {name}")
        self.set({"gen_ai.request.model": name, "bonsai.model.version": version})

    def fail(self, kind: str) -> None:
        self._span.set_attribute("error.type", kind)
        self._span.set_status(StatusCode.ERROR)

    def headers(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, self._context)
        return carrier

    def __enter__(self) -> Self:
        self._token = current_span.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._token is not None
        current_span.reset(self._token)
        if isinstance(error, asyncio.CancelledError):
            self._span.set_attribute("error.type", "cancelled")  # nobody wanted it any more: no failure
        elif error is not None:
            code = error.code if isinstance(error, RmServerError) else None
            self.fail(code or type(error).__qualname__)
        self._span.end()


class OtlpTracer:
    """See `rm_server.tracing.Tracer`."""

    def __init__(self, endpoint: str) -> None:
        ours = Resource.create(
            {"service.name": "bonsai-rm-server", "service.version": version("bonsai-gateway")}
        )
        self._provider = TracerProvider(
            resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._exporter = ToldOnce(OTLPSpanExporter(endpoint))
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("bonsai.rm_server")

    def request(self, operation: str, headers: Mapping[str, str], attributes: Attributes) -> OtlpSpan:
        begun = _PROPAGATOR.extract(headers, Context())
        span = self._tracer.start_span(operation, begun, SpanKind.SERVER, {**attributes})
        return OtlpSpan(self._tracer, span, time.time_ns() - time.perf_counter_ns(), operation)

    def close(self) -> None:
        """The library's own end waits for a collector that is dead, for half a minute."""
        flushing = threading.Thread(target=self._provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(FLUSH_S)
        self._exporter.shutdown()


class ToldOnce(SpanExporter):
    """An exporter around another one, whose failures are logged when they begin and when they end."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._lost = 0
        self._closed = False
        # What the library says of a dead collector, several times with each batch, is said here.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE if self._closed else self._inner.export(spans)
        if result is not SpanExportResult.SUCCESS:
            if not self._lost and not self._closed:
                logger.warning("the collector of traces does not take them: they are dropped until it does")
            self._lost += len(spans)
        elif self._lost:
            logger.warning("the collector of traces takes them again: %d spans were lost", self._lost)
            self._lost = 0
        return result

    def shutdown(self) -> None:
        """The second time nothing is left to do."""
        if not self._closed:
            self._closed = True
            self._inner.shutdown()
