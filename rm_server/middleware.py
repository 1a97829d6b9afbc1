"""What every answer carries, whatever made it: x-request-id, server-timing, and its place in the metrics."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Container

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rm_server.metrics import Metrics
from rm_server.served_model import Timings
from rm_server.shelf import Shelf
from rm_server.tracing import NO_SPAN, Span, Tracer

CLIENT_GONE = 499  # seen in metrics only: there is nobody to send it to
_REQUEST_ID = re.compile(r"[\w.:/-]{1,128}", re.ASCII)


class Observed:
    """Pure ASGI middleware. Handlers note their times in `scope["timings"]`."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        shelf: Shelf,
        tracer: Tracer,
        *,
        routes: Container[str],
        judging: Container[str],
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._shelf = shelf
        self._tracer = tracer
        self._routes = routes
        self._judging = judging

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        timings = scope["timings"] = Timings()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = MutableHeaders(scope=message)
                answered["x-request-id"] = request_id
                answered["server-timing"] = timings.header()
                if self._shelf.leaving:
                    answered["connection"] = "close"
            await send(message)

        path = scope["path"]
        route = path if path in self._routes or path in self._judging else "other"
        started = time.perf_counter()
        self._metrics.in_flight.inc()
        with self._span(scope, headers, request_id) as span:
            try:
                await self._app(scope, receive, send_with_headers)
            finally:
                self._metrics.in_flight.dec()
                self._metrics.requests.labels(route, str(status)).inc()
                seconds = time.perf_counter() - started
                self._metrics.request_seconds.labels(route).observe(seconds, span.exemplar)
                if status == CLIENT_GONE:
                    self._metrics.disconnects.inc()
                span.set({"http.response.status_code": status})
                if status >= 500:
                    span.fail(str(status))

    def _span(self, scope: Scope, headers: Headers, request_id: str) -> Span:
        """Of what is judged; probes and whoever reads metrics have none."""
        path = scope["path"]
        if scope["method"] != "POST" or path not in self._judging:
            return NO_SPAN
        operation = path.rsplit("/", 1)[1]
        about = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "bonsai",
            "http.request.method": "POST",
            "http.route": path,
            "bonsai.request_id": request_id,
        }
        return self._tracer.request(operation, headers, about)
