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

CLIENT_GONE = 499  # seen in metrics only: there is nobody to send it to
_REQUEST_ID = re.compile(r"[\w.:/-]{1,128}", re.ASCII)


class Observed:
    """Pure ASGI middleware. Handlers note their times in `scope["timings"]`."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Container[str], shelf: Shelf) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes
        self._shelf = shelf

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        timings = scope["timings"] = Timings()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["server-timing"] = timings.header()
                if self._shelf.leaving:
                    headers["connection"] = "close"
            await send(message)

        route = scope["path"] if scope["path"] in self._routes else "other"
        started = time.perf_counter()
        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            self._metrics.in_flight.dec()
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - started)
            if status == CLIENT_GONE:
                self._metrics.disconnects.inc()
