"""A connection without a socket, on a clock that the test turns."""

import asyncio
import heapq
from collections.abc import Callable
from typing import Any

import httpx
import uvicorn
from uvicorn.server import ServerState

from gateway.http_limits import HttpLimits
from gateway.http_protocol import HttpProtocol, http_protocol
from tests.gateway.raw_http import Recorder


class Timer:
    """A call that is due."""

    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call = call
        self.is_cancelled = False

    def cancel(self) -> None:
        """Do not call."""
        self.is_cancelled = True

    def __lt__(self, other: "Timer") -> bool:
        return self.at < other.at


class Clock:
    """The parts of an event loop that the protocol uses, in a time of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: list[Timer] = []
        self.loop = asyncio.get_running_loop()

    def time(self) -> float:
        """Seconds."""
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        """See asyncio."""
        timer = Timer(when, call)
        heapq.heappush(self.due, timer)
        return timer

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        """See asyncio."""
        return self.call_at(self.now + delay, call)

    def call_soon(self, call: Callable[[], None]) -> object:
        """See asyncio."""
        return self.loop.call_soon(call)

    def create_task(self, work: Any) -> asyncio.Task[None]:
        """See asyncio."""
        return self.loop.create_task(work)

    def turn_to(self, when: float) -> None:
        """Let time pass."""
        while self.due and self.due[0].at <= when:
            timer = heapq.heappop(self.due)
            self.now = timer.at
            if not timer.is_cancelled:
                timer.call()
        self.now = when


class Wire(asyncio.Transport):
    """A transport to nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        self.ended = self.closed = self.aborted = self.paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Note it."""
        assert not self.ended
        self.written += data

    def get_write_buffer_size(self) -> int:
        """What the client has not taken."""
        return self.unsent

    def is_closing(self) -> bool:
        """See asyncio."""
        return self.closed

    def close(self) -> None:
        """Close once all is sent."""
        self.closed = True

    def abort(self) -> None:
        """Close at once."""
        self.closed = self.aborted = True

    def can_write_eof(self) -> bool:
        """It can."""
        return True

    def write_eof(self) -> None:
        """No more will be written."""
        self.ended = True

    def pause_reading(self) -> None:
        """Take no more for now."""
        self.paused = True

    def resume_reading(self) -> None:
        """Take more."""
        self.paused = False

    def answer(self) -> httpx.Response:
        """The next answer that was written."""
        head, _, rest = self.written.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        headers = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
        size = int(dict(headers)[b"content-length"])
        self.written = rest[size:]
        return httpx.Response(int(first.split(b" ")[1]), headers=headers, content=rest[:size])


class Connection:
    """A connection at time 0, and a Recorder behind it."""

    def __init__(self, limits: HttpLimits) -> None:
        self.app, self.clock, self.wire = Recorder(), Clock(), Wire()
        self.counted: list[str] = []
        self.state = ServerState()
        make = http_protocol(limits, self.counted.append)
        config = uvicorn.Config(
            self.app, http=make, ws="none", access_log=False, log_config=None, timeout_keep_alive=75
        )
        self.protocol: HttpProtocol = make(config, self.state, {}, self.clock)  # type: ignore[arg-type]
        self.protocol.connection_made(self.wire)

    def receive(self, data: bytes, at: float) -> None:
        """Bytes from the client at a time."""
        self.clock.turn_to(at)
        if not self.wire.closed:
            self.protocol.data_received(data)

    async def serve(self) -> None:
        """Let the application run until it can do no more."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def end(self) -> None:
        """The connection is lost."""
        self.protocol.connection_lost(None)
        self.app.let_go.set()
        await asyncio.gather(*self.state.tasks)
