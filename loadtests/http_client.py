"""HTTP/1.1 at next to no cost: a raw asyncio protocol and llhttp's parser, because a client library would be
measured instead of the server. A pool of kept connections without a limit; one request at a time on each.
Nothing is retried and nothing is followed: what a request met is what its `Reply` says."""

import asyncio
import ssl
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from time import perf_counter
from types import TracebackType
from typing import Self, cast
from urllib.parse import urlsplit

import httptools

from loadtests.errors import LoadTestError

TIMEOUT_S = 120.0


def now() -> float:
    """Seconds. Not the event loop's clock, which under uvloop counts in whole milliseconds; on Linux it is
    the monotonic clock, the same for every process."""
    return perf_counter()


@dataclass(slots=True)
class Reply:
    """What came back."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case."""
    pieces: list[bytes] = field(default_factory=list)
    """The body as it arrived ..."""
    times: list[float] = field(default_factory=list)
    """... and when each piece did, by `now`."""
    ended_at: float = 0.0
    error: str | None = None
    """None, or why there is no whole answer: "no connection", "reset" (no byte of an answer came), "cut" or
    "time-out"."""

    @property
    def body(self) -> bytes:
        """The whole of it."""
        return b"".join(self.pieces)

    @property
    def first_at(self) -> float | None:
        """When the first byte of the body came."""
        return self.times[0] if self.times else None

    def times_of(self, positions: Iterable[int]) -> list[float]:
        """When the body's bytes at these positions came."""
        ends = list(accumulate(len(piece) for piece in self.pieces))
        return [self.times[bisect_right(ends, position)] for position in positions]


class Connection(asyncio.Protocol):
    """A connection to a server; `send` again once the last reply is there."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._reply = Reply()
        self._waiting: asyncio.Future[Reply] | None = None
        self.open = False

    def send(self, request: bytes) -> asyncio.Future[Reply]:
        """The reply to a whole request."""
        self._reply = Reply()
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._waiting

    def close(self) -> None:
        """Hang up."""
        self.open = False
        self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self.open = True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._end("cut" if self._reply.status else "reset")

    # httptools' callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        self._reply.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._reply.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._reply.pieces.append(body)
        self._reply.times.append(now())

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        self._end(None)

    def _end(self, error: str | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._reply.error, self._reply.ended_at = error, now()
            self._waiting.set_result(self._reply)


class HttpClient:
    """Requests to one server. Cancelling one hangs up on it."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise LoadTestError(f"{url}: must be an address such as http://127.0.0.1:8000")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        self._authority = parts.netloc.rpartition("@")[2]
        self._timeout_s = timeout_s
        self._idle: list[Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)  # the transports end in the loop's next round

    async def send(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send a request, take the whole reply."""
        request = self.encode(method, path, body, headers)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(request)
        except TimeoutError:
            return Reply(error="time-out", ended_at=now())

    async def _exchange(self, request: bytes) -> Reply:
        try:
            connection = await self._connection()
        except OSError:
            return Reply(error="no connection", ended_at=now())
        try:
            reply = await connection.send(request)
        except asyncio.CancelledError:
            connection.close()
            raise
        if connection.open:
            self._idle.append(connection)
        return reply

    def encode(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> bytes:
        """The bytes of a request with a JSON body."""
        lines = [f"{method} {self._prefix}{path} HTTP/1.1", f"host: {self._authority}"]
        if body or method in {"POST", "PUT"}:
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        return "\r\n".join([*lines, "", ""]).encode() + body

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=self._ssl)
        return connection
