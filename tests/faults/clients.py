"""A client of bare sockets, for what proper clients never do: it leaves whenever it likes."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from tests.faults.world import CANARY_KEY, MESSAGES
from tests.gateway.fake_servers import MODEL

PATH = "/v1/chat/completions"


def request_bytes(path: str = PATH, headers: Mapping[str, str] | None = None, **fields: Any) -> bytes:
    """A POST of a chat (or of what `fields` say) as it is on the wire."""
    body = json.dumps({"model": MODEL, **({"messages": MESSAGES} if path == PATH else {}), **fields}).encode()
    lines = {
        "host": "gateway",
        "authorization": f"Bearer {CANARY_KEY}",
        "content-type": "application/json",
        "content-length": str(len(body)),
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


class Socket:
    """One connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        """Write."""
        self.writer.write(data)

    def reset(self) -> None:
        """Leave without a word."""
        self.writer.transport.abort()

    def half_close(self) -> None:
        """Say that no more will be sent, and stay to read."""
        self.writer.write_eof()

    async def status(self) -> int:
        """Of the next answer; its status line is read."""
        line = await asyncio.wait_for(self.reader.readline(), 10)
        return int(line.split()[1]) if line else 0


@asynccontextmanager
async def connected(url: str, limit: int = 2**16) -> AsyncGenerator[Socket, None]:
    """A connection for the length of the block; it reads ahead by at most `limit` bytes (times 2)."""
    parts = urlsplit(url)
    assert parts.port is not None
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=limit)
    try:
        yield Socket(reader, writer)
    finally:
        writer.transport.abort()
