"""Traces by OpenTelemetry, sent over HTTP as protobuf (OTLP).

Requests never wait for the collector: a thread sends batches out of a bounded queue, and what does not fit is
dropped. That the collector does not take them is said once, as is that it does again. What is sampled, how
large queue and batches are, and the headers that a collector wants come from OpenTelemetry's own variables of
the environment (OTEL_TRACES_SAMPLER, OTEL_BSP_*, OTEL_EXPORTER_OTLP_HEADERS, OTEL_RESOURCE_ATTRIBUTES ...).
Unless they say otherwise, whoever began a trace decides whether it is sampled, and without such a one it is.
"""

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from types import TracebackType

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.errors import GatewayError
from gateway.tracing import Attributes, Span, Value

logger = logging.getLogger("gateway")
FLUSH_S = 2.0
"""At the end, for what has been recorded and not yet sent."""
_PROPAGATOR = TraceContextTextMapPropagator()


class OtlpSpan(Span):
    """A span of OpenTelemetry's."""

    __slots__ = ("_context", "_span", "_tracer")

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span
        self._context = trace.set_span_in_context(span, Context())

    @property
    def recording(self) -> bool:  # type: ignore[override]  # a constant where nothing is recorded
        """See Span."""
        return self._span.is_recording()

    @property
    def trace_id(self) -> str | None:  # type: ignore[override]  # likewise
        """See Span."""
        context = self._span.get_span_context()
        return trace.format_trace_id(context.trace_id) if context.trace_flags.sampled else None

    @property
    def exemplar(self) -> dict[str, str] | None:
        """See Span."""
        trace_id = self.trace_id
        return None if trace_id is None else {"trace_id": trace_id}

    def child(self, name: str, attributes: Attributes, *, client: bool = False) -> "OtlpSpan":
        """See Span."""
        kind = SpanKind.CLIENT if client else SpanKind.INTERNAL
        span = self._tracer.start_span(name, self._context, kind, _present(attributes))
        return OtlpSpan(self._tracer, span)

    def name(self, name: str) -> None:
        """See Span."""
        self._span.update_name(name)

    def set(self, attributes: Attributes) -> None:
        """See Span."""
        self._span.set_attributes(_present(attributes))

    def event(self, name: str, attributes: Attributes) -> None:
        """See Span."""
        self._span.add_event(name, _present(attributes))

    def fail(self, kind: str) -> None:
        """See Span."""
        self._span.set_attribute("error.type", kind)
        self._span.set_status(StatusCode.ERROR)

    def headers(self) -> dict[str, str]:
        """See Span."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, self._context)
        return carrier

    def end(self) -> None:
        """See Span."""
        self._span.end()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._span.set_attribute("error.type", "cancelled")  # nobody wanted it any more: no failure
        elif error is not None:
            code = error.code if isinstance(error, GatewayError) else None
            self.fail(code or type(error).__qualname__)
        self._span.end()


class OtlpTracer:
    """See `gateway.tracing.Tracer`."""

    def __init__(self, endpoint: str) -> None:
        ours = Resource.create(
            {"service.name": "bonsai-gateway", "service.version": version("bonsai-gateway")}
        )
        self._provider = TracerProvider(
            resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._exporter = ToldOnce(OTLPSpanExporter(endpoint))
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("bonsai.gateway")

    def request(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> OtlpSpan:
        """See Tracer."""
        begun = _PROPAGATOR.extract(headers, Context())
        span = self._tracer.start_span(name, begun, SpanKind.SERVER, _present(attributes))
        return OtlpSpan(self._tracer, span)

    def close(self) -> None:
        """See Tracer. The library's own end waits for a collector that is dead, for half a minute."""
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
        """See SpanExporter."""
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
        """See SpanExporter. The second time nothing is left to do."""
        if not self._closed:
            self._closed = True
            self._inner.shutdown()


def _present(attributes: Attributes) -> dict[str, Value]:
    return {name: value for name, value in attributes.items() if value is not None}
