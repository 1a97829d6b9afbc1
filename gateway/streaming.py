"""Streams out to the client, and noticing that the client has gone.

After the first byte the status cannot change any more: whatever goes wrong then is an error event without
`[DONE]`, on which OpenAI's clients raise; a stream that merely stops would look complete to them.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.drain import Drain
from gateway.errors import (
    ClientGoneError,
    DeadlineError,
    GatewayError,
    StoppingError,
    UpstreamError,
    UpstreamFailedError,
    UpstreamUnavailableError,
    from_http_status,
)
from gateway.policy import Reply
from gateway.sse import DONE, EVENT_STREAM, EventSplitter, data_of, error_event, is_aborted, is_error
from gateway.upstream import UNREADABLE, token_count

STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
T = TypeVar("T")


@asynccontextmanager
async def cancelled_when_gone(receive: Receive, drain: Drain) -> AsyncIterator[None]:
    """Cancel the body of this block when the client hangs up.

    The request's body must have been read before: from then on the only message that can come is the goodbye.

    Raises:
        ClientGoneError: it hung up.
        StoppingError: the server cancelled this, because the gateway is leaving and has waited long enough.
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
            raise (_gone() if gone else StoppingError()) from None
        raise
    finally:
        watcher.cancel()


def _gone() -> ClientGoneError:
    return ClientGoneError("The client has gone.")


class EventStream(Response):
    """A streamed answer that owns what it needs (`resources`) and gives it back however it ends."""

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        resources: AsyncExitStack,
        drain: Drain,
        headers: dict[str, str],
        on_error: Callable[[GatewayError, bool], None],
        on_first: Callable[[], None],
    ) -> None:
        super().__init__(headers={**STREAM_HEADERS, **headers})
        self.headers["content-type"] = EVENT_STREAM
        del self.headers["content-length"]
        self._events = events
        self._resources = resources
        self._drain = drain
        self._on_error = on_error
        self._on_first = on_first
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send. What fails before the first event has its own status; later failures are an error event."""
        last = b""
        try:
            # Resources see what went wrong: a replica that broke off is to blame for it.
            async with self._resources, aclosing(self._events), cancelled_when_gone(receive, self._drain):
                await self._send_all(send)
        except GatewayError as error:
            self._on_error(error, self._begun)
            if not self._begun:
                await error_response(error)(scope, receive, send)
                return
            last = error_event(error)
        except Exception:
            if self._begun:  # a bug: the client is told, and Observe has it in the log
                bug = error_event(from_http_status(500))
                await send({"type": "http.response.body", "body": bug, "more_body": False})
            raise
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _send_all(self, send: Send) -> None:
        async for event in self._events:
            if not self._begun:
                self._begun = True
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await send(start)
                self._on_first()
            await send({"type": "http.response.body", "body": event, "more_body": True})


def error_response(error: GatewayError) -> Response:
    """An error as a whole answer."""
    return Response(error.body(), error.status, error.headers(), "application/json")


class StreamTokens:
    """What a stream that passes through costs, as far as it says so."""

    def __init__(self) -> None:
        self.prompt = 0
        self.completion = 0
        self._events = 0
        self._hide_usage = False

    @property
    def charge(self) -> int:
        """Tokens to charge a key: as the policy counted them; where the stream ended before it said, one per
        event."""
        return self.prompt + (self.completion or self._events)

    def ask(self, body: dict[str, Any]) -> None:
        """Have the policy count; the client sees the counts only if it asked for them."""
        options = body.get("stream_options") or {}
        self._hide_usage = not options.get("include_usage")
        body["stream_options"] = {**options, "include_usage": True}

    def read(self, event: bytes) -> bool:
        """Take note of an event; whether it may pass."""
        self._events += 1
        if b'"usage"' not in event:
            return True
        try:
            chunk = msgspec.json.decode(data_of(event), type=_Counts)
        except UNREADABLE:
            return True
        self.prompt = token_count(chunk.usage.get("prompt_tokens"))
        self.completion = token_count(chunk.usage.get("completion_tokens"))
        return bool(chunk.choices) or not self._hide_usage


class _Counts(msgspec.Struct):
    usage: dict[str, Any]
    choices: list[Any] = []


def _failure_in(event: bytes) -> GatewayError | None:
    if b'"error"' in event and is_error(data_of(event)):
        return UpstreamFailedError("The policy server failed while it generated.")
    if b'"abort"' in event and is_aborted(data_of(event)):
        return UpstreamUnavailableError("The policy server stopped before it had answered.")
    return None


async def relay(reply: Reply, tokens: StreamTokens) -> AsyncGenerator[bytes, None]:
    """The policy's stream, byte for byte, event by event, up to its `[DONE]`.

    Raises:
        UpstreamError: its error event, or an end without `[DONE]`.
        UpstreamUnavailableError: it gives the answer up, as a server that leaves does.
    """
    splitter = EventSplitter()
    async with aclosing(reply.chunks()) as arrivals:
        async for data in arrivals:
            passing: list[bytes] = []
            for event in splitter.feed(data):
                if (error := _failure_in(event)) is not None:
                    if passing:
                        yield b"".join(passing)
                    raise error
                if tokens.read(event):
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


async def in_time(events: AsyncGenerator[bytes, None], at: float) -> AsyncGenerator[bytes, None]:
    """The events until the loop's time is `at`.

    Raises:
        DeadlineError: there would have been more.
    """
    async with aclosing(events):
        while True:
            try:
                async with asyncio.timeout_at(at):
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise DeadlineError("The deadline came before the end of the answer.") from None
            yield event


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
