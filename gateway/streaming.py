"""Streams out to the client, and noticing that the client has gone.

After the first byte the status cannot change any more: whatever goes wrong then is an error event without
`[DONE]`, on which OpenAI's clients raise; a stream that merely stops would look complete to them.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.drain import Drain
from gateway.errors import ClientGoneError, GatewayError, OverloadedError, UpstreamError
from gateway.policy import Reply
from gateway.sse import DONE, EventSplitter, data_of, error_event, is_error

STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
EVENT_STREAM = "text/event-stream; charset=utf-8"
T = TypeVar("T")


@asynccontextmanager
async def cancelled_when_gone(receive: Receive, drain: Drain) -> AsyncIterator[None]:
    """Cancel the body of this block when the client hangs up.

    The request's body must have been read before: from then on the only message that can come is the goodbye.

    Raises:
        ClientGoneError: it hung up.
        OverloadedError: the server cancelled this, because the gateway is leaving and has waited long enough.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if (gone or drain.leaving) and task.uncancel() == 0:
            raise (_gone() if gone else _stopping()) from None
        raise
    finally:
        watcher.cancel()


def _gone() -> ClientGoneError:
    return ClientGoneError("The client has gone.")


def _stopping() -> OverloadedError:
    return OverloadedError("The gateway is stopping.", code="stopping")


class EventStream(Response):
    """A streamed answer that owns what it needs (`resources`) and gives it back however it ends."""

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        resources: AsyncExitStack,
        drain: Drain,
        headers: dict[str, str],
        media_type: str,
        on_error: Callable[[GatewayError], None],
        on_first: Callable[[], None],
    ) -> None:
        super().__init__(headers={**STREAM_HEADERS, **headers})
        self.headers["content-type"] = media_type
        del self.headers["content-length"]
        self._events = events
        self._resources = resources
        self._drain = drain
        self._on_error = on_error
        self._on_first = on_first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send; scope is not needed."""
        async with self._resources, aclosing(self._events):
            last = b""
            try:
                async with cancelled_when_gone(receive, self._drain):
                    await self._send_all(send)
            except GatewayError as error:
                self._on_error(error)
                last = error_event(error)
            await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        first = True
        async for event in self._events:
            if first:
                self._on_first()
                first = False
            await send({"type": "http.response.body", "body": event, "more_body": True})


async def relay(reply: Reply) -> AsyncGenerator[bytes, None]:
    """The policy's stream, byte for byte, event by event, up to its `[DONE]`.

    Raises:
        UpstreamError: its error event, or an end without `[DONE]`.
    """
    splitter = EventSplitter()
    async with aclosing(reply.chunks()) as arrivals:
        async for data in arrivals:
            passing: list[bytes] = []
            for event in splitter.feed(data):
                if b'"error"' in event and is_error(data_of(event)):
                    if passing:
                        yield b"".join(passing)
                    raise UpstreamError("The policy server failed while it generated.")
                passing.append(event)
                if b"[DONE]" in event and data_of(event) == b"[DONE]":
                    yield b"".join(passing)
                    await reply.finish()
                    return
            if passing:
                yield b"".join(passing)
    done = b"".join(splitter.end())
    if not done:
        raise UpstreamError("The policy server broke off in the middle of its answer.")
    yield done


async def with_heartbeats(
    work: asyncio.Task[T],
    every_s: float,
    beats: Iterator[bytes],
    render: Callable[[T, bool], Iterator[bytes]],
) -> AsyncGenerator[bytes, None]:
    """A beat per interval while `work` goes on, then what `render` makes of its result, then `[DONE]`.

    `render` is told whether a beat was sent.

    Raises:
        GatewayError: as `work` does.
    """
    beaten = False
    while not work.done():
        yield next(beats)
        beaten = True
        await asyncio.wait({work}, timeout=every_s)
    for event in render(work.result(), beaten):
        yield event
    yield DONE


async def stop(work: asyncio.Task[T]) -> None:
    """End `work` and wait until it has ended."""
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
