"""However bytes are cut up on their way, they mean the same; and no bytes break the protocol."""

import asyncio
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http_limits import HttpLimits
from tests.gateway.fake_wire import Connection
from tests.gateway.raw_http import GET
from tests.gateway.stack import check_envelope
from tests.gateway.test_http_protocol import CHUNKED, END, HOSTILE, LIKED, post

PIECES = [
    GET,
    post(b"Content-Length: 5", b"abcde"),
    post(CHUNKED, b"3\r\nabc\r\n2;x=y\r\nde\r\n" + END),
    post(CHUNKED, b"3\r\nabc\r\n0\r\nHost: b\r\nX: y\r\n\r\n"),
    post(b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5", b"abcde"),
    post(b"Connection: close\r\nContent-Length: 1", b"a"),
    b"\r\n",
    *HOSTILE.values(),
    *(raw for raw, _ in LIKED.values()),
]
Transcript = tuple[list[int], list[tuple[str, str, bytes]]]


def transcript(pieces: list[bytes]) -> Transcript:
    """The statuses of what came back, and what reached the application."""

    async def talk() -> Transcript:
        link, statuses = Connection(HttpLimits()), []
        for piece in pieces:
            link.receive(piece, at=0)
            await link.serve()
        while link.wire.written:
            answer = link.wire.answer()
            statuses.append(answer.status_code)
            if answer.status_code != 200:
                check_envelope(answer, 400, "invalid_http")
                assert link.wire.ended
        await link.end()
        return statuses, link.app.requests

    return asyncio.run(talk())


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """Some requests, good and bad, in which some bytes may be wrong."""
    raw = bytearray(b"".join(draw(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4))))
    for position in draw(st.lists(st.integers(0, len(raw) - 1), max_size=3)):
        raw[position] = draw(st.integers(0, 255))
    return bytes(raw)


@settings(max_examples=300, deadline=None)
@given(raw=conversations(), cuts=st.lists(st.integers(0, 600), max_size=6))
def test_cuts_change_nothing(raw: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    assert transcript([raw]) == transcript([raw[start:end] for start, end in pairwise(places)])


@settings(max_examples=30, deadline=None)
@given(raw=conversations())
def test_nor_does_a_byte_at_a_time(raw: bytes) -> None:
    assert transcript([raw]) == transcript([bytes([byte]) for byte in raw])
