"""Streams out: what passes, what is counted, how they end, and who is told."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from gateway.drain import Drain
from gateway.errors import (
    ClientGoneError,
    DeadlineError,
    GatewayError,
    InvalidRequestError,
    StoppingError,
    UpstreamError,
    UpstreamFailedError,
    UpstreamUnavailableError,
)
from gateway.streaming import (
    EventStream,
    StreamTokens,
    cancelled_when_gone,
    in_time,
    relay,
    stop,
    with_heartbeats,
)

ERROR = b'data: {"error": {"message": "secret"}}\n\n'
DONE = b"data: [DONE]\n\n"
ABORTED = b'data: {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "abort"}]}\n\n'


def chunk(text: str = "a", **fields: Any) -> bytes:
    """An event of a chat."""
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}], **fields}).encode() + b"\n\n"


COUNTS = chunk(usage={"prompt_tokens": 5, "completion_tokens": 2})
LAST_COUNTS = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}\n\n'


class Reply:
    """A policy's stream that arrives in these pieces."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self.finished = False
        self.closed = False

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Piece by piece."""
        try:
            for piece in self._pieces:
                yield piece
        finally:
            self.closed = True

    async def finish(self) -> None:
        """See Reply."""
        self.finished = True


async def relayed(reply: Reply, tokens: StreamTokens | None = None) -> tuple[bytes, GatewayError | None]:
    """What passed, and why it ended early."""
    passed = b""
    try:
        async for data in relay(reply, tokens or StreamTokens()):
            passed += data
    except GatewayError as error:
        return passed, error
    return passed, None


@given(cuts=st.lists(st.integers(0, 400), max_size=20))
def test_a_stream_passes_unchanged_however_it_was_cut(cuts: list[int]) -> None:
    whole = b": hello\n\n" + chunk("x") + chunk('say "error" and "usage" and [DONE]') + COUNTS + DONE
    edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    reply = Reply([whole[begin:end] for begin, end in pairwise(edges)])
    assert asyncio.run(relayed(reply)) == (whole, None)
    assert (reply.finished, reply.closed) == (True, True)


async def test_nothing_passes_after_the_end() -> None:
    assert await relayed(Reply([chunk() + DONE + chunk("more"), chunk("more")])) == (chunk() + DONE, None)


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ([chunk() + ERROR + DONE], UpstreamFailedError),
        ([chunk(), ERROR, DONE], UpstreamFailedError),
        ([chunk() + ABORTED + DONE], UpstreamUnavailableError),
        ([chunk()], UpstreamError),
        ([chunk() + b"data: [DO"], UpstreamError),
        ([chunk() + chunk("half")[:-2]], UpstreamError),
    ],
)
async def test_what_came_before_a_failure_passes(pieces: list[bytes], kind: type[GatewayError]) -> None:
    reply = Reply(pieces)
    passed, error = await relayed(reply)
    assert (passed, type(error), reply.closed) == (chunk(), kind, True)


@pytest.mark.parametrize(
    "event",
    [
        chunk('"abort"'),
        chunk("abort"),
        b'data: {"choices": ["abort"]}\n\n',
        b'data: "abort"\n\n',
        b': "abort"\n\n',
    ],
)
async def test_the_word_alone_aborts_nothing(event: bytes) -> None:
    assert await relayed(Reply([event + DONE])) == (event + DONE, None)


async def test_counts_are_read_and_pass_only_to_who_asked() -> None:
    for options, asked in [(None, False), ({"include_usage": False}, False), ({"include_usage": True}, True)]:
        tokens = StreamTokens()
        body: dict[str, Any] = {"stream_options": options, "stream": True}
        tokens.ask(body)
        assert body["stream_options"]["include_usage"] is True
        passed, _ = await relayed(Reply([chunk() + COUNTS + LAST_COUNTS + DONE]), tokens)
        assert passed == chunk() + COUNTS + (LAST_COUNTS if asked else b"") + DONE
        assert (tokens.prompt, tokens.completion, tokens.charge) == (5, 3, 8)


def test_other_options_stay_as_they_are() -> None:
    body: dict[str, Any] = {"stream_options": {"continuous_usage_stats": True}}
    StreamTokens().ask(body)
    assert body["stream_options"] == {"continuous_usage_stats": True, "include_usage": True}


async def test_a_stream_that_ends_uncounted_is_charged_by_its_events() -> None:
    tokens = StreamTokens()
    tokens.ask({})
    await relayed(Reply([chunk(), chunk(), chunk()]), tokens)
    assert tokens.charge == 3


@pytest.mark.parametrize(
    "counts", [None, 3, [], {"prompt_tokens": -1, "completion_tokens": "3"}, {"prompt_tokens": True}]
)
async def test_counts_that_are_none_pass_and_count_nothing(counts: Any) -> None:
    tokens = StreamTokens()
    strange = chunk(usage=counts)
    assert await relayed(Reply([strange + DONE]), tokens) == (strange + DONE, None)
    assert (tokens.prompt, tokens.completion) == (0, 0)


async def endless(closed: asyncio.Event) -> AsyncGenerator[bytes, None]:
    """One event, and then nothing."""
    try:
        yield chunk()
        await asyncio.Event().wait()
    finally:
        closed.set()


async def test_a_stream_ends_at_its_deadline() -> None:
    closed = asyncio.Event()
    events = in_time(endless(closed), asyncio.get_running_loop().time() + 0.1)
    assert await anext(events) == chunk()
    with pytest.raises(DeadlineError):
        await anext(events)
    assert closed.is_set()


async def test_a_stream_that_ends_in_time_ends_as_it_does() -> None:
    events = in_time(relay(Reply([chunk() + DONE]), StreamTokens()), asyncio.get_running_loop().time() + 60)
    assert [event async for event in events] == [chunk() + DONE]


async def test_beats_until_the_work_is_done_then_what_it_came_to() -> None:
    async def work() -> str:
        await gate.wait()
        return "result"

    gate = asyncio.Event()
    beats = iter([b"first", b"second", b"third"])
    events = with_heartbeats(
        asyncio.create_task(work()), 0.01, beats, lambda result, beaten: iter([f"{result} {beaten}".encode()])
    )
    assert [await anext(events), await anext(events)] == [b"first", b"second"]
    gate.set()
    assert [event async for event in events][-2:] == [b"result True", DONE]


class Link:
    """The server's side of one request."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self.first = asyncio.Event()

    async def receive(self) -> Message:
        """The client's goodbye."""
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """To the client."""
        self.sent.append(message)
        if message.get("body"):
            self.first.set()

    @property
    def status(self) -> int:
        """Of the answer."""
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        """Of the answer, which has come to its end."""
        assert not self.sent[-1].get("more_body", False)
        return b"".join(message.get("body", b"") for message in self.sent)


async def answered(
    events: AsyncGenerator[bytes, None], link: Link, *, drain: Drain | None = None
) -> tuple[list[BaseException | None], list[tuple[str | None, bool]]]:
    """Send a stream; what its resources saw, and which errors were noted."""
    seen: list[BaseException | None] = []
    noted: list[tuple[str | None, bool]] = []
    resources = AsyncExitStack()

    def see(_: object, error: BaseException | None, __: object) -> None:
        seen.append(error)

    resources.push(see)
    stream = EventStream(
        events,
        resources=resources,
        drain=drain or Drain(),
        headers={"x-best-of": "4"},
        on_error=lambda error, begun: noted.append((error.code, begun)),
        on_first=lambda: None,
    )
    await stream({"type": "http"}, link.receive, link.send)
    return seen, noted


async def failing(*events: bytes, error: Exception) -> AsyncGenerator[bytes, None]:
    """These events, then the error."""
    for event in events:
        yield event
    raise error


async def test_a_whole_stream() -> None:
    link = Link()
    seen, noted = await answered(relay(Reply([chunk() + DONE]), StreamTokens()), link)
    assert (link.status, link.body, seen, noted) == (200, chunk() + DONE, [None], [])
    assert (b"x-best-of", b"4") in link.sent[0]["headers"]


async def test_a_failure_before_the_first_event_keeps_its_status() -> None:
    link, error = Link(), InvalidRequestError("no", code="nope")
    seen, noted = await answered(failing(error=error), link)
    assert (link.status, json.loads(link.body)["error"]["code"]) == (400, "nope")
    assert (seen, noted) == ([error], [("nope", False)])


async def test_a_later_failure_is_an_event_and_the_resources_know_of_it() -> None:
    link, error = Link(), UpstreamError("broke off")
    seen, noted = await answered(failing(chunk(), error=error), link)
    assert (link.status, link.body) == (200, chunk() + b"data: " + error.body() + b"\n\n")
    assert (seen, noted) == ([error], [("upstream_error", True)])


async def test_a_bug_gives_the_resources_back_and_is_not_hidden() -> None:
    link, bug, closed = Link(), ZeroDivisionError(), asyncio.Event()
    async with AsyncExitStack() as resources:
        resources.callback(closed.set)
        stream = EventStream(
            failing(chunk(), error=bug),
            resources=resources.pop_all(),
            drain=Drain(),
            headers={},
            on_error=lambda *_: pytest.fail("no error of a client's"),
            on_first=lambda: None,
        )
    with pytest.raises(ZeroDivisionError):
        await stream({"type": "http"}, link.receive, link.send)
    assert closed.is_set()
    assert json.loads(link.body.split(b"data: ")[-1])["error"]["code"] == "internal_error"


async def test_a_client_that_leaves_ends_the_stream() -> None:
    link, closed = Link(), asyncio.Event()
    sending = asyncio.create_task(answered(endless(closed), link))
    await link.first.wait()
    link.gone.set()
    seen, noted = await sending
    assert closed.is_set()
    assert ([type(error) for error in seen], noted) == ([ClientGoneError], [("client_closed_request", True)])


async def cut_short(drain: Drain, link: Link) -> None:
    """Something that would take for ever."""
    async with cancelled_when_gone(link.receive, drain):
        await asyncio.Event().wait()


async def test_a_gateway_that_leaves_says_so_and_another_cancel_stays_one() -> None:
    for leaving, kind in [(True, StoppingError), (False, asyncio.CancelledError)]:
        drain = Drain()
        drain.leaving = leaving
        task = asyncio.create_task(cut_short(drain, Link()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(kind):
            await task


async def test_who_is_gone_is_not_cancelled_any_more() -> None:
    async def handler() -> int:
        with pytest.raises(ClientGoneError):
            await cut_short(Drain(), link)
        await asyncio.sleep(0)  # would be cut short itself by a cancel that is left over
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    link = Link()
    handling = asyncio.create_task(handler())
    await asyncio.sleep(0)
    link.gone.set()
    assert await handling == 0


async def test_stop_waits_for_the_end_and_takes_any() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        async with aclosing(endless(ended)) as events:
            async for _ in events:
                pass

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await stop(task)
    assert ended.is_set()
    await stop(task)
