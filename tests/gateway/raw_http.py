"""Raw bytes to a server and back: a client that keeps no rule of HTTP, and an application that notes what
reaches it."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from uvicorn.server import ServerState

from gateway.http_limits import HttpLimits
from gateway.http_protocol import http_protocol

PATIENCE_S = 20
GET = b"GET /ok HTTP/1.1\r\nHost: a\r\n\r\n"


class RawClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, receive_buffer: int | None = None) -> "RawClient":
        """Connect; `receive_buffer` in bytes, for a client that is to take little."""
        link = socket.socket()
        link.setblocking(False)
        if receive_buffer is not None:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(link, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=link))

    async def send(self, data: bytes) -> None:
        """Begin to send, and let the server have what fits into one packet."""
        self.writer.write(data)
        await asyncio.sleep(0)

    async def answer(self) -> httpx.Response:
        """The next answer, 100 Continue among them."""
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            lines = head[:-4].split(b"\r\n")
            headers = [(name, value) for name, _, value in (line.partition(b": ") for line in lines[1:])]
            size = int(dict(headers).get(b"content-length", 0))
            content = await self.reader.readexactly(size)
        return httpx.Response(int(lines[0].split(b" ")[1]), headers=headers, content=content)

    async def rest(self) -> bytes:
        """Everything until the server hangs up, be it with a reset."""
        received = bytearray()
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionError):
                while data := await self.reader.read(65536):
                    received += data
        return bytes(received)

    async def close(self) -> None:
        """Hang up, at once if the server takes no more."""
        if self.writer.transport.get_write_buffer_size():
            self.writer.transport.abort()
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@dataclass
class Recorder:
    """An ASGI application that answers with what it got. `/early` it answers unread, `/held` when let go,
    `/watched` never; on `/eager` the answer begins before the request is read."""

    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """A client left, or was refused, before its request was complete or answered."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve."""
        body, more = b"", scope["path"] != "/early"
        self.arrived.set()
        if scope["path"] == "/eager":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"well", "more_body": True})
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left.set()
                return
            body += message["body"]
            more = message["more_body"] or scope["path"] == "/watched"
        self.headers = list(scope["headers"])
        if scope["path"] == "/held":
            await self.let_go.wait()
        self.requests.append((scope["method"], scope["path"], body))
        content = json.dumps([scope["method"], scope["path"], len(body)]).encode()
        head = [(b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": content})


@dataclass
class Edge:
    """A server with our protocol, and what it counted."""

    port: int
    counted: list[str]
    state: ServerState

    @asynccontextmanager
    async def connect(self, receive_buffer: int | None = None) -> AsyncGenerator[RawClient, None]:
        """A connection, closed after the block."""
        client = await RawClient.open(self.port, receive_buffer)
        try:
            yield client
        finally:
            await client.close()

    async def check_serves(self) -> None:
        """A normal request on a new connection is answered."""
        async with self.connect() as client:
            await client.send(GET)
            assert (await client.answer()).json() == ["GET", "/ok", 0]


@asynccontextmanager
async def edge(app: Recorder, limits: HttpLimits | None = None) -> AsyncGenerator[Edge, None]:
    """`app` behind our protocol on a free port, without the rest of uvicorn, which takes its time."""
    counted: list[str] = []
    protocol = http_protocol(limits or HttpLimits(), counted.append)
    config = uvicorn.Config(app, http=protocol, ws="none", access_log=False, log_config=None)
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    try:
        yield Edge(server.sockets[0].getsockname()[1], counted, state)
    finally:
        server.close()
        app.let_go.set()
        for connection in list(state.connections):
            connection.transport.abort()
        await asyncio.wait_for(asyncio.gather(*state.tasks), PATIENCE_S)
