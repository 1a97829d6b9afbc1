"""Around every request, as plain ASGI: its id, its metrics, its line in the log, and an envelope for what
nobody foresaw."""

import asyncio
import logging
import os
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.drain import Drain
from gateway.errors import GatewayError, InvalidRequestError, StoppingError, from_http_status
from gateway.log_format import RequestLine, level_of
from gateway.logs import Logs
from gateway.metrics import Metrics
from gateway.tracing import NO_SPAN, Span, operation

logger = logging.getLogger("gateway")
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass
class Trace:
    """What is noted about one request; handlers fill in what they learn."""

    request_id: str
    start: float = field(default_factory=time.perf_counter)
    route: str = "other"
    model: str = "none"
    status: int = 0
    late_code: str | None = None
    """What went wrong after the status had gone."""
    error_code: str | None = None
    """`code` of the error that was answered."""
    queue_s: float = 0.0
    best_of: int = 1
    scored: int | None = None
    degraded: str | None = None
    tokens: int = 0
    key: str | None = None
    """The API key's id."""
    replicas: list[str] = field(default_factory=list)
    """The policy's, as they were asked."""
    span: Span = NO_SPAN


class Observe:
    """Gives each request a Trace in `scope["state"]["trace"]` and counts it however it ends."""

    def __init__(self, app: ASGIApp, metrics: Metrics, drain: Drain, log: Logs | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._drain = drain
        self._log = log
        if log is not None:
            log.sink.on_drop = metrics.log_lines_dropped.inc

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = Trace(request_id(Headers(scope=scope).get("x-request-id")))
        scope.setdefault("state", {})["trace"] = trace

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", trace.request_id.encode())]
                if self._drain.leaving:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        self._metrics.in_flight.inc()
        try:
            with self._drain.request():
                await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            if not self._drain.leaving:
                raise
            if trace.status == 0:  # it outlasted the drain where nothing says so but this
                await _send_error(send_with_id, StoppingError())
        except Exception:  # the last line of defence: a bug of ours must still answer in the envelope
            logger.exception("a request failed", extra={"request_id": trace.request_id})
            trace.late_code = "500"
            if trace.status == 0:
                await _send_error(send_with_id, from_http_status(500))
        finally:
            self._metrics.in_flight.dec()
            self._end(trace, scope["method"])

    def _end(self, trace: Trace, method: str) -> None:
        status = trace.status or 499
        seconds = time.perf_counter() - trace.start
        code = trace.late_code or str(status)
        self._metrics.request(trace.route, trace.model, code, seconds, trace.span.exemplar)
        level = level_of(status, trace.late_code)
        if self._log is not None and self._log.wants(level):
            self._log.request(_line(trace, method, status, seconds, logging.getLevelName(level).lower()))
        if trace.span is not NO_SPAN:
            _end_span(trace, status)


def request_id(offered: str | None) -> str:
    """The client's own id if it is short and plain, else a new one."""
    if offered is not None and _SANE_ID.fullmatch(offered):
        return offered
    return os.urandom(16).hex()


def _line(trace: Trace, method: str, status: int, seconds: float, level: str) -> RequestLine:
    return RequestLine(
        ts=datetime.now(UTC),
        level=level,
        event="request",
        request_id=trace.request_id,
        method=method,
        route=trace.route,
        model=trace.model,
        status=status,
        late_code=trace.late_code,
        duration_ms=round(seconds * 1000, 3),
        error_code=trace.error_code,
        queue_ms=round(trace.queue_s * 1000, 3) or None,
        best_of=trace.best_of,
        scored=trace.scored,
        degraded=trace.degraded,
        tokens=trace.tokens,
        replica=",".join(dict.fromkeys(trace.replicas)),
        key=trace.key,
        trace_id=trace.span.trace_id,
    )


def _end_span(trace: Trace, status: int) -> None:
    """What the client did wrong is no failure of ours."""
    trace.span.name(f"{operation(trace.route)} {trace.model}")
    trace.span.set(
        {
            "gen_ai.request.model": trace.model,
            "http.response.status_code": status,
            "error.type": trace.error_code or trace.late_code or (str(status) if status >= 400 else None),
        }
    )
    if status >= 500 or trace.late_code not in {None, "499"}:
        trace.span.fail(trace.error_code or trace.late_code or str(status))
    trace.span.end()


async def _send_error(send: Send, error: GatewayError) -> None:
    body = error.body()
    headers = [(name.encode(), value.encode()) for name, value in error.headers().items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class Cors(CORSMiddleware):
    """Starlette's, whose refusals are errors like all others."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """See starlette."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        error = InvalidRequestError(
            "Web pages of this origin, or requests of this kind, are not let in here."
        )
        response.headers["content-type"] = "application/json"
        response.body = error.body()
        response.headers["content-length"] = str(len(response.body))
        return response
