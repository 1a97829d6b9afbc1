"""What supervisor and worker say to each other survives the way."""

import asyncio
import socket
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission import Refusal, Ticket
from gateway.allowance import Allowance, Rate
from gateway.config import GatewayConfig, PolicyConfig
from gateway.desk_wire import (
    Ask,
    Channel,
    Done,
    FromWorker,
    Granted,
    Hurry,
    Leave,
    Refused,
    Reload,
    Start,
    ToWorker,
    Up,
    first_message,
    frame,
)
from gateway.flags import ServerOptions
from gateway.logs import LogOptions

CONFIG = GatewayConfig(
    policies=(PolicyConfig(urls=("http://127.0.0.1:1", "http://127.0.0.1:2"), name="tiny"),),
    allow_fields=frozenset({"priority"}),
)
OPTIONS = ServerOptions(
    host="127.0.0.1", port=80, workers=2, drain_delay_s=5.0, drain_s=30.0, log=LogOptions()
)
START = Start(1, 7, "folder", OPTIONS, CONFIG)
TO_WORKER: list[ToWorker] = [
    START,
    Granted(1, 0.25, Rate(limit_requests=60, remaining_requests=59, reset_requests=1.0)),
    Refused(2, Refusal(reason="key_too_large", retry_after=None)),
    Leave(5.0),
    Hurry(),
    Reload(config=CONFIG),
    Reload(error="`limits` is wrong"),
]
FROM_WORKER: list[FromWorker] = [
    Up(),
    Ask(0, Ticket(slots=8, key="k", allowance=Allowance(tokens_per_day=5), max_wait_s=0.5, retry=True)),
    Ask(1, Ticket(slots=1)),
    Done(0, 1234),
]


def received(kind: object, pieces: list[bytes]) -> list[object]:
    """What a channel makes of bytes that come in these pieces."""

    async def run() -> list[object]:
        messages: list[object] = []
        channel: Channel[object] = Channel(kind, messages.append)
        for piece in pieces:
            channel.data_received(piece)
        return messages

    return asyncio.run(run())


@pytest.mark.parametrize(("kind", "messages"), [(ToWorker, TO_WORKER), (FromWorker, FROM_WORKER)])
@given(cuts=st.lists(st.integers(0, 2000), max_size=12))
def test_messages_arrive_whole_and_in_order_however_the_bytes_are_cut(
    kind: object, messages: list[ToWorker | FromWorker], cuts: list[int]
) -> None:
    data = frame(messages[:2]) + frame(messages[2:])
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in pairwise(places)]
    assert received(kind, pieces) == messages


async def test_what_is_said_in_one_turn_goes_out_in_one_write() -> None:
    ours, theirs = socket.socketpair()
    channel: Channel[FromWorker] = Channel(FromWorker, lambda _: None)
    await channel.connect(ours)
    channel.send(Leave(1.0))
    channel.send(Hurry())
    await asyncio.sleep(0)
    channel.close()
    with theirs:
        assert theirs.recv(1000) == frame([Leave(1.0), Hurry()])


async def test_a_side_hears_that_the_other_is_gone() -> None:
    ours, theirs = socket.socketpair()
    channel: Channel[FromWorker] = Channel(FromWorker, lambda _: None)
    await channel.connect(ours)
    theirs.close()
    await asyncio.wait_for(channel.lost.wait(), 10)
    channel.send(Hurry())  # says so to nobody, and fails nobody
    await asyncio.sleep(0)


def test_the_first_message_is_read_and_nothing_after_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(frame([START]) + frame([Hurry()]))
        assert first_message(theirs) == START
        assert theirs.recv(1000) == frame([Hurry()])


@pytest.mark.parametrize("heard", [b"", b"\0\0", frame([START])[:-1]])
def test_a_supervisor_that_dies_before_the_first_message_is_noticed(heard: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(heard)
        ours.close()
        with pytest.raises(EOFError):
            first_message(theirs)
