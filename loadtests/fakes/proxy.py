"""A proxy that breaks what passes through it, before any HTTP server: its answers come as they are, byte for
byte, but for the share of the calls that meets a fault. Requests are passed on whole, each on a connection of
its own; a caller that leaves is gone upstream too."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

import httptools

from loadtests.errors import LoadTestError
from loadtests.fakes.fake import Fake
from loadtests.fakes.http_server import Call
from loadtests.fakes.records import Record, now
from loadtests.fakes.script import Fault, ProxyScript

OWN_HEADERS = {"host", "content-length", "transfer-encoding", "connection", "expect"}
"""Of a request; the proxy says these itself."""
READ_BYTES = 65_536


class AnswerEnd:
    """Finds the end of an answer in its bytes."""

    def __init__(self, method: str) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._bodiless = method == "HEAD"
        self.found = False

    def feed(self, data: bytes) -> None:
        """Look at more. httptools.HttpParserError where it is no HTTP."""
        self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        self.found = self._bodiless

    def on_message_complete(self) -> None:
        self.found = True


class FaultProxy(Fake[ProxyScript]):
    """See loadtests.fakes."""

    def __init__(self, script: ProxyScript, upstream: str) -> None:
        super().__init__(script)
        parts = urlsplit(upstream)
        if parts.scheme != "http" or not parts.hostname:
            raise LoadTestError(f"{upstream}: must be an address such as http://127.0.0.1:8000")
        self._address = parts.hostname, parts.port or 80
        self._authority = parts.netloc

    async def __call__(self, call: Call) -> None:
        """Serve one call."""
        if call.path.startswith("/_ctl/"):
            await super().__call__(call)
        else:
            await self.serve(call, {})

    async def work(self, call: Call, body: dict[str, Any], record: Record, fault: Fault | None) -> None:
        """Pass a call on, and its answer back."""
        try:
            reader, writer = await asyncio.open_connection(*self._address)
        except OSError:
            await call.answer({"error": {"message": "no upstream", "code": 502}}, 502)
            return
        try:
            writer.write(self._request(call))
            await self._relay(reader, call, record)
        finally:
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, call: Call, record: Record) -> None:
        end = AnswerEnd(call.method)
        while not end.found:
            try:
                data = await reader.read(READ_BYTES)
                end.feed(data)
            except (OSError, httptools.HttpParserError):
                data = b""
            if not data:
                call.close()
                return
            record.first_at = record.first_at or now()
            await call.send(data)

    def _request(self, call: Call) -> bytes:
        lines = [f"{call.method} {call.path} HTTP/1.1", f"host: {self._authority}"]
        lines += [f"{name}: {value}" for name, value in call.headers.items() if name not in OWN_HEADERS]
        lines += [f"content-length: {len(call.body)}", "", ""]
        return "\r\n".join(lines).encode("latin-1") + call.body
