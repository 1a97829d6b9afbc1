"""Takes a request in: its body within bounds, and its work dropped when the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from rm_server.errors import BodyTooLargeError, NotJsonError, QueueFullError
from rm_server.metrics import Metrics

T = TypeVar("T")


class Intake:
    """Reads bodies: none above `max_body_bytes`, and those in work together within `max_total_bytes`."""

    def __init__(self, metrics: Metrics, *, max_body_bytes: int, max_total_bytes: int) -> None:
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._free_bytes = max_total_bytes

    async def read(self, request: Request) -> bytes:
        """The body. Raises BodyTooLargeError, NotJsonError, ClientDisconnect."""
        content_type = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
        if content_type != "application/json":
            raise NotJsonError("The body must be application/json")
        if int(request.headers.get("content-length", 0)) > self._max_body_bytes:
            raise self._too_large()
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._max_body_bytes:
                raise self._too_large()
        return bytes(body)

    @contextmanager
    def in_work(self, num_bytes: int) -> Iterator[None]:
        """Counts a body as in work. Raises QueueFullError where there is no room for it."""
        if num_bytes > self._free_bytes:
            self._metrics.rejected.inc()
            raise QueueFullError(retry_after=1)
        self._free_bytes -= num_bytes
        try:
            yield
        finally:
            self._free_bytes += num_bytes

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(f"The body is larger than {self._max_body_bytes} bytes")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away first: then ClientDisconnect.

    Frameworks let a handler run on for a client that left; here that would be forward passes for nobody.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
