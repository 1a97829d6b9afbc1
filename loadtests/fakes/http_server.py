"""HTTP/1.1 at next to no cost: a raw asyncio protocol and llhttp's parser, because a web framework here would
be measured instead of the gateway. Bodies are taken whole; calls on one connection are served in turn; a
call whose connection goes away is cancelled."""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import cast

import httptools
import msgspec

REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 500: "Internal Server Error"}
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"


class CutError(Exception):
    """The part of an answer that was to be sent has been."""


@dataclass
class Call:
    """A request, and the way to answer it."""

    connection: "Connection"
    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    cut_after: int | None = None
    """So many bytes of the answer are sent, head and framing included; None: all."""

    async def send(self, data: bytes) -> None:
        """Hand bytes to the socket; wait where the reader is slow. CutError where no more are to be sent."""
        if self.cut_after is not None:
            rest, data = data[self.cut_after :], data[: self.cut_after]
            self.cut_after -= len(data)
            if rest:
                if data:
                    await self.connection.send(data)
                raise CutError
        await self.connection.send(data)

    async def answer(self, content: object, status: int = 200) -> None:
        """A whole answer in JSON."""
        await self.send(whole(msgspec.json.encode(content), status))

    def reset(self) -> None:
        """Break the connection off."""
        self.connection.reset()

    def end_sending(self) -> None:
        """Say that no more will come, and go on reading."""
        self.connection.end_sending()

    def close(self) -> None:
        """Close the connection once all is sent."""
        self.connection.close()


Serve = Callable[[Call], Awaitable[None]]


def whole(body: bytes, status: int = 200) -> bytes:
    """An answer with a JSON body, head and all."""
    reason = REASONS.get(status, "Status")
    head = (
        f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def chunk(data: bytes) -> bytes:
    """One chunk of a streamed body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Call] = deque()
        self._serving: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    async def send(self, data: bytes) -> None:
        """See Call."""
        await self._writable.wait()
        self._transport.write(data)

    def reset(self) -> None:
        """See Call."""
        # Lingering for 0 s makes the kernel send a reset instead of a goodbye.
        connected = self._transport.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def end_sending(self) -> None:
        """See Call."""
        self._transport.write_eof()

    def close(self) -> None:
        """See Call."""
        self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.clear()
        self._writable.set()
        if self._serving is not None:
            self._serving.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.reset()

    # httptools' callbacks

    def on_url(self, url: bytes) -> None:
        self._call = Call(self, "", url.decode("latin-1"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._call.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._call.body += body

    def on_message_complete(self) -> None:
        self._call.method = self._parser.get_method().decode()
        self._waiting.append(self._call)
        if self._serving is None:
            self._next()

    def _next(self) -> None:
        self._serving = asyncio.get_running_loop().create_task(self._serve_one(self._waiting.popleft()))

    async def _serve_one(self, call: Call) -> None:
        await self._serve(call)
        self._serving = None
        if self._waiting:
            self._next()


async def listen(serve: Serve, port: int) -> asyncio.Server:
    """A listener on loopback; port 0 takes a free one."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: Connection(serve), "127.0.0.1", port, backlog=4096)
