"""HTTP/1.1 as clients may speak it here: uvicorn's protocol on httptools, with what it lacks.

uvicorn has no deadline for a request that arrives slowly, no limit on headers, URL, pipelined requests or
connections, lets a client that does not read hold its answer for ever, and answers errors as plain text. Here
each of these is bounded (`HttpLimits`), and what is refused is answered in the gateway's envelope with an
x-request-id, then closed. A request costs no timer: each connection has one, which looks at what is due.

    uvicorn.Config(app, http=http_protocol(HttpLimits(), count), ...)
"""

import asyncio
import math
from collections.abc import Callable
from enum import Enum
from typing import Any

import httptools
from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.errors import GatewayError, OverloadedError, RequestTimeoutError, UrlTooLongError
from gateway.http_limits import HttpLimits, check_head, headers_too_large, refused
from gateway.http_refusal import refusal
from gateway.http_stall import Stall

SLICE = 4096
"""Bytes parsed at a time, so that few pipelined requests are begun before the first is answered."""
HELD_BYTES = 64 * 1024
"""Pipelined bytes kept unparsed; then the connection is not read until the answer is out."""
LINGER_S = 2.0
LINGER_BYTES = 16 * 1024 * 1024
"""What is still read and dropped in that time, so that a client that sends its whole body before it reads
finds the refusal there and not a reset."""
CHUNKED_BYTES = 64 * 1024
"""Of a body of unknown length that was answered unread, as below."""
UNREAD_BYTES = 4 * 1024 * 1024
"""Of a body that was answered unread, what is read and dropped so that the connection can go on."""
FRAMING_BYTES = 64 * 1024
FRAMING_PER_BYTE = 8
"""Chunk sizes, chunk extensions and trailers may take this much, and this much for each byte of the body."""
PROBES = b"/health"


class Phase(Enum):
    """Where a connection stands in what it receives."""

    BETWEEN = "between requests"
    HEAD = "in a request's head"
    BODY = "in a request's body"


def http_protocol(limits: HttpLimits, count: Callable[[str], None]) -> type["HttpProtocol"]:
    """The protocol for `uvicorn.Config(http=...)`.

    Args:
        count: told the code of each refusal, and of each client cut off (`slow_reader`,
            `too_many_connections`).
    """
    return type("LimitedHttpProtocol", (HttpProtocol,), {"limits": limits, "count": staticmethod(count)})


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    limits: HttpLimits
    count: Callable[[str], None]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._phase = Phase.BETWEEN
        self._receive_by = math.inf
        self._look_every_s = min(self.limits.head_s, self.limits.body_s, self.limits.stall_s)
        self._timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        self._head_bytes = 0
        self._framed_bytes = 0
        self._body_bytes = 0
        self._unread_bytes = 0
        """How much more is worth reading of what nobody waits for."""
        self._held = bytearray()
        self._refusal: GatewayError | None = None
        self._closing = False
        self._surplus = False
        self._stall = Stall(self.limits.stall_s)

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """See asyncio."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections_heard:
            self.count("too_many_connections")
            transport.abort()
            return
        self._surplus = len(self.connections) > self.limits.connections
        now = self.loop.time()
        self._receive_by = now + self.limits.head_s
        self._timer = self.loop.call_at(now + self._look_every_s, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        self._dismiss()

    def resume_writing(self) -> None:
        """The client has taken most of what waited."""
        self._stall.clear()
        super().resume_writing()

    def _look(self) -> None:
        """Whether the client is late, in sending or in taking its answer."""
        now = self.loop.time()
        if self._stalls(now):
            self.count("slow_reader")
            self.transport.abort()
            return
        if now >= self._receive_by and not self._busy() and not self.transport.is_closing():
            self._receive_by = math.inf
            self._give_up_receiving()
        if not self._closing:
            due = now + self._look_every_s
            if not self._busy() and not self.transport.is_closing():
                due = min(due, self._receive_by)
            self._timer = self.loop.call_at(due, self._look)

    def _stalls(self, now: float) -> bool:
        unsent, running = self.transport.get_write_buffer_size(), self._running
        is_answered = running is None or running.response_complete
        if unsent and (self.flow.write_paused or self.transport.is_closing() or is_answered):
            return self._stall.is_over(unsent, now)
        self._stall.clear()
        return False

    def _give_up_receiving(self) -> None:
        if self._phase is Phase.BETWEEN:
            self.transport.close()
        else:
            part = "headers" if self._phase is Phase.HEAD else "body"
            self._refuse(RequestTimeoutError(f"The {part} of the request took too long to arrive."))

    # What comes in

    def data_received(self, data: bytes) -> None:
        """Parse it, unless the request before it is not answered yet."""
        if self._closing:
            self._drop(len(data))
            return
        self._unset_keepalive_if_required()
        if self._busy():
            self._hold(data)
            return
        if self._receive_by == math.inf:
            self._receive_by = self.loop.time() + self.limits.head_s
        if len(data) <= SLICE:
            self._feed(data)
            return
        view = memoryview(data)
        for start in range(0, len(data), SLICE):
            if self._busy():
                self._hold(view[start:])
                return
            self._feed(view[start : start + SLICE])

    def _busy(self) -> bool:
        """Whether a request that has come in whole is not answered yet."""
        running = self._running
        return running is not None and not running.more_body and not running.response_complete

    def _hold(self, data: bytes | memoryview) -> None:
        self._held += data
        if len(self._held) > HELD_BYTES:
            self.flow.pause_reading()

    def _feed(self, data: bytes | memoryview) -> None:
        if self._closing:
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._serve_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            cause = error.__context__  # what a callback of ours raised
            self._refuse(
                cause if isinstance(cause, GatewayError) else refused("This is not a valid HTTP/1.1 request.")
            )
        else:
            if self._phase is not Phase.BETWEEN:
                self._weigh(len(data))

    def _weigh(self, size: int) -> None:
        """Bound what the parser and the application have no bound for."""
        if self._phase is Phase.HEAD:
            self._head_bytes += size
            if self._head_bytes > self.limits.head_bytes:
                self._refuse(self._head_too_large())
        elif self._phase is Phase.BODY:
            self._framed_bytes += size
            if self.cycle.response_complete:
                self._unread_bytes -= size
                if self._unread_bytes < 0:
                    self._linger()
            elif self._framed_bytes > FRAMING_BYTES + FRAMING_PER_BYTE * self._body_bytes:
                self._refuse(refused("The body has more framing than content."))

    def _head_too_large(self) -> GatewayError:
        if self.headers:
            return headers_too_large(self.limits)
        return UrlTooLongError(f"The URL may have at most {self.limits.url_bytes} bytes.")

    def _serve_without_upgrade(self, rest: bytes | memoryview) -> None:
        """Serve a request that offers another protocol (as Java's client does, h2c) as the HTTP/1.1 that it
        also is. The parser took its body for that protocol: a new one reads it again, without the offer."""
        lines = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        version = self.parser.get_http_version().encode()
        first = self.scope["method"].encode() + b" " + self.url + b" HTTP/" + version
        self.parser = httptools.HttpRequestParser(self)
        self._feed(b"\r\n".join([first, *lines, b"", b""]))
        if rest:
            self._feed(rest)

    # What the parser finds

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._phase = Phase.HEAD
        self._head_bytes = 0
        self._receive_by = min(self._receive_by, self.loop.time() + self.limits.head_s)

    def on_headers_complete(self) -> None:
        """Check the head, then let the application begin.

        Raises:
            GatewayError: the head is refused; the parser stops and hands it on.
        """
        parser = self.parser
        if parser.should_upgrade():
            self._consider_upgrade(parser.get_method())
            return
        check_head(parser.get_http_version(), self.url, self.headers, self.limits)
        if self._surplus and not self.url.startswith(PROBES):
            raise OverloadedError("Too many connections.", code="too_many_connections")
        super().on_headers_complete()
        self.headers = []  # trailers are not headers (RFC 9110, 6.5.1)
        self._phase = Phase.BODY
        self._framed_bytes = self._body_bytes = 0
        self._receive_by = self.loop.time() + self.limits.body_s

    def _consider_upgrade(self, method: bytes) -> None:
        if method == b"CONNECT":
            raise refused("CONNECT is for proxies.")
        offered = [value.strip().lower() for name, value in self.headers if name == b"upgrade"]
        if b"websocket" in offered:
            raise refused("This server has no WebSockets.")
        self.scope["method"] = method.decode("ascii")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request's last byte."""
        if self.parser.should_upgrade():
            return  # see _serve_without_upgrade
        super().on_message_complete()
        self._phase = Phase.BETWEEN
        self._receive_by = math.inf
        if self.cycle.response_complete:  # answered before it was read: what comes next is a new request
            self._receive_by = self.loop.time() + self.timeout_keep_alive

    # What the application does

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        self._running = cycle
        super()._start_asgi_task(cycle, app)  # type: ignore[arg-type]  # starlette's and uvicorn's ASGI types

    def on_response_complete(self) -> None:
        """The answer is out: go on with what came in meanwhile."""
        answered = self._running
        is_last = not self.pipeline
        super().on_response_complete()
        if self._closing or self.transport.is_closing():
            return
        if is_last and self._refusal is not None:
            self._send_refusal(self._refusal)
        elif answered is self.cycle and self.cycle.more_body:
            self._unread_bytes = self._worth_reading()
            if self._unread_bytes == 0:
                self._linger()
        else:
            self._receive_next()

    def _worth_reading(self) -> int:
        """How much more to read of a body that is answered already, so that the connection can go on."""
        if self.expect_100_continue and self._body_bytes == 0:
            return 0  # whether the body follows or the next request, nobody can tell
        lengths = [int(value) for name, value in self.scope["headers"] if name == b"content-length"]
        if not lengths:
            return CHUNKED_BYTES
        unread = lengths[0] - self._body_bytes
        return unread + SLICE if unread <= UNREAD_BYTES else 0

    def _receive_next(self) -> None:
        if self._phase is Phase.BODY:
            self._receive_by = self.loop.time() + self.limits.body_s
        elif self._phase is Phase.HEAD or self._held:
            self._receive_by = self.loop.time() + self.limits.head_s
        if self._held:
            self.loop.call_soon(self._feed_held)

    def _feed_held(self) -> None:
        data = bytes(self._held)
        self._held.clear()
        self.data_received(data)

    # Refusals

    def _refuse(self, error: GatewayError) -> None:
        """Answer a request with an error, after the answers that are due before it, and close."""
        self._refusal = error
        self._receive_by = math.inf
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()  # it is the one refused
        if self._busy():
            return
        running = self._running
        if running is not None and running.response_started and not running.response_complete:
            self.transport.abort()
        elif self._phase is Phase.BODY and running is not None and running.response_complete:
            self._linger()
        else:
            self._send_refusal(error)

    def _send_refusal(self, error: GatewayError) -> None:
        self._dismiss()
        self.transport.write(refusal(error, self.scope["headers"], self.server_state.default_headers))
        self.count(error.code or error.type)
        self._linger()

    def _dismiss(self) -> None:
        """Tell the application, if one is at work, that its client is gone."""
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()

    def _linger(self) -> None:
        """Say goodbye, and give the client a moment to read it before the connection goes."""
        self._closing = True
        self._held.clear()
        self._unread_bytes = LINGER_BYTES
        self._unset_keepalive_if_required()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(LINGER_S, self.transport.abort)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()

    def _drop(self, size: int) -> None:
        self._unread_bytes -= size
        if self._unread_bytes < 0:
            self.flow.pause_reading()
