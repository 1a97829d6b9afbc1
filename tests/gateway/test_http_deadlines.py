"""Deadlines of a connection at both sides, on a clock that the test turns."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from gateway.http_limits import HttpLimits
from gateway.http_protocol import HELD_BYTES, LINGER_BYTES
from gateway.http_stall import STALL_BYTES
from tests.gateway.fake_wire import Connection
from tests.gateway.raw_http import GET
from tests.gateway.stack import check_envelope

HEAD = b"POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"


@pytest.fixture
async def link() -> AsyncGenerator[Connection, None]:
    connection = Connection(HttpLimits())
    yield connection
    await connection.end()
    assert all(timer.is_cancelled for timer in connection.clock.due)


async def test_a_silent_connection_is_closed_after_10_s(link: Connection) -> None:
    link.clock.turn_to(9.9)
    assert not link.wire.closed
    link.clock.turn_to(10)
    assert link.wire.closed
    assert link.wire.written == b""


@pytest.mark.parametrize("sent", [b"G", GET[:20], GET[:-1]])
async def test_a_head_has_10_s_however_it_trickles(link: Connection, sent: bytes) -> None:
    for number, byte in enumerate(sent):
        link.receive(bytes([byte]), at=9.9 * number / len(sent))
    link.clock.turn_to(9.9)
    assert link.wire.written == b""
    link.clock.turn_to(10)
    error = check_envelope(link.wire.answer(), 408, "request_timeout")
    assert "headers" in error["message"]
    assert link.wire.ended
    assert link.counted == ["request_timeout"]
    link.clock.turn_to(12)
    assert link.wire.aborted


async def test_a_head_that_ends_in_time_is_served(link: Connection) -> None:
    link.receive(GET[:-1], at=0)
    link.receive(GET[-1:], at=9.9)
    await link.serve()
    assert link.wire.answer().status_code == 200


async def test_a_body_has_30_s_however_it_trickles(link: Connection) -> None:
    link.receive(HEAD, at=5)
    link.receive(b"a", at=15)
    link.receive(b"b", at=34)
    await link.serve()
    link.clock.turn_to(34.9)
    assert link.wire.written == b""
    link.clock.turn_to(35)
    error = check_envelope(link.wire.answer(), 408, "request_timeout")
    assert "body" in error["message"]
    await asyncio.wait_for(link.app.left.wait(), 5)
    assert link.app.requests == []


async def test_a_body_that_ends_in_time_is_served(link: Connection) -> None:
    link.receive(HEAD, at=9)
    link.receive(b"abc", at=38.9)
    await link.serve()
    assert link.wire.answer().status_code == 200


async def test_an_idle_connection_is_kept_as_long_as_uvicorn_is_told(link: Connection) -> None:
    link.receive(GET, at=1)
    await link.serve()
    link.clock.turn_to(75.9)
    assert not link.wire.closed
    link.clock.turn_to(76)
    assert link.wire.closed


async def test_the_next_head_has_10_s_from_its_first_byte(link: Connection) -> None:
    link.receive(GET, at=1)
    await link.serve()
    assert link.wire.answer().status_code == 200
    link.receive(b"G", at=50)
    link.clock.turn_to(59.9)
    assert link.wire.written == b""
    link.clock.turn_to(60)
    check_envelope(link.wire.answer(), 408)


async def test_empty_lines_do_not_keep_a_connection(link: Connection) -> None:
    link.receive(GET, at=0)
    await link.serve()
    link.wire.answer()
    for second in range(20, 35):
        link.receive(b"\r\n", at=second)
    assert link.wire.closed
    assert link.wire.written == b""


async def test_time_at_work_is_not_the_clients(link: Connection) -> None:
    link.receive(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n" + GET[:-1], at=0)
    await link.serve()
    link.clock.turn_to(1000)
    assert link.wire.written == b""
    link.app.let_go.set()
    await link.serve()
    assert link.wire.answer().json()[1] == "/held"
    link.receive(GET[-1:], at=1009.9)
    await link.serve()
    assert link.wire.answer().json()[1] == "/ok"


async def test_half_a_request_behind_a_long_one_has_10_s_after_it(link: Connection) -> None:
    link.receive(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n" + GET[:-1], at=0)
    await link.serve()
    link.clock.turn_to(1000)
    link.app.let_go.set()
    await link.serve()
    link.wire.answer()
    link.clock.turn_to(1009.9)
    assert link.wire.written == b""
    link.clock.turn_to(1010)
    check_envelope(link.wire.answer(), 408)


async def test_half_a_body_behind_a_long_request_has_30_s_after_it(link: Connection) -> None:
    link.receive(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n" + HEAD + b"a", at=0)
    await link.serve()
    link.clock.turn_to(1000)
    link.app.let_go.set()
    await link.serve()
    link.wire.answer()
    link.clock.turn_to(1029.9)
    assert link.wire.written == b""
    link.clock.turn_to(1030)
    assert "body" in check_envelope(link.wire.answer(), 408)["message"]


async def test_a_body_that_nobody_waits_for_has_30_s_too(link: Connection) -> None:
    link.receive(HEAD.replace(b"/ok", b"/early"), at=0)
    await link.serve()
    assert link.wire.answer().status_code == 200
    link.receive(b"a", at=29)
    link.clock.turn_to(30)
    assert link.wire.ended
    assert link.wire.written == b""


async def test_a_connection_answered_early_goes_on(link: Connection) -> None:
    link.receive(HEAD.replace(b"/ok", b"/early"), at=0)
    await link.serve()
    assert link.wire.answer().status_code == 200
    link.receive(b"abc" + GET, at=29)
    await link.serve()
    assert link.wire.answer().json()[1] == "/ok"


async def test_a_connection_answered_early_is_kept_idle_no_longer_than_others(link: Connection) -> None:
    link.receive(HEAD.replace(b"/ok", b"/early"), at=0)
    await link.serve()
    link.receive(b"abc", at=10)
    link.clock.turn_to(84.9)
    assert not link.wire.closed
    link.clock.turn_to(85)
    assert link.wire.closed


async def test_the_head_behind_a_body_that_nobody_waited_for_has_10_s(link: Connection) -> None:
    link.receive(HEAD.replace(b"/ok", b"/early"), at=0)
    await link.serve()
    link.wire.answer()
    link.receive(b"abcG", at=20)
    link.clock.turn_to(29.9)
    assert link.wire.written == b""
    link.clock.turn_to(30)
    check_envelope(link.wire.answer(), 408)


# Answers that are not taken.


async def test_a_client_that_takes_nothing_is_cut_off_after_60_s(link: Connection) -> None:
    link.receive(b"GET /watched HTTP/1.1\r\nHost: a\r\n\r\n", at=0)
    await link.serve()
    link.wire.unsent = 70_000
    link.protocol.pause_writing()
    link.clock.turn_to(69.9)  # it is looked at every 10 s: at 10 the 60 s begin
    assert not link.wire.closed
    link.clock.turn_to(70)
    assert link.wire.aborted
    assert link.counted == ["slow_reader"]


async def test_a_client_that_takes_too_little_is_cut_off(link: Connection) -> None:
    link.receive(b"GET /watched HTTP/1.1\r\nHost: a\r\n\r\n", at=0)
    await link.serve()
    link.protocol.pause_writing()
    for second in range(71):
        link.wire.unsent = 10 * STALL_BYTES - second
        link.clock.turn_to(second)
    assert link.wire.aborted


async def test_a_client_that_takes_enough_is_waited_for(link: Connection) -> None:
    link.receive(b"GET /watched HTTP/1.1\r\nHost: a\r\n\r\n", at=0)
    await link.serve()
    link.protocol.pause_writing()
    for minute in range(100):
        link.wire.unsent = (100 - minute) * STALL_BYTES
        link.clock.turn_to(50 * minute)
    assert not link.wire.closed


async def test_a_stream_that_flows_is_waited_for(link: Connection) -> None:
    link.receive(b"GET /watched HTTP/1.1\r\nHost: a\r\n\r\n", at=0)
    await link.serve()
    for second in range(0, 1000, 5):  # full whenever it is looked at, and taken in between
        link.wire.unsent = 70_000
        link.protocol.pause_writing()
        link.clock.turn_to(second)
        link.wire.unsent = 1000
        link.protocol.resume_writing()
    assert not link.wire.closed


async def test_the_rest_of_an_answer_is_not_kept_for_ever(link: Connection) -> None:
    link.receive(GET, at=0)
    await link.serve()
    link.wire.unsent = 10
    link.clock.turn_to(69.9)
    assert not link.wire.closed
    link.clock.turn_to(70)
    assert link.wire.aborted


async def test_nor_that_of_a_connection_that_is_closing(link: Connection) -> None:
    link.receive(b"GET /ok HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", at=0)
    link.wire.unsent = 10
    await link.serve()
    assert link.wire.closed
    link.clock.turn_to(69.9)
    assert not link.wire.aborted
    link.clock.turn_to(70)
    assert link.wire.aborted


async def test_each_stall_is_timed_by_itself(link: Connection) -> None:
    link.receive(GET, at=0)
    await link.serve()
    link.wire.unsent = 10
    link.clock.turn_to(10)
    link.receive(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n", at=20)
    await link.serve()
    link.clock.turn_to(60)
    link.app.let_go.set()
    await link.serve()
    link.clock.turn_to(129)
    assert not link.wire.aborted
    link.clock.turn_to(130)
    assert link.wire.aborted


# What is held, and what is dropped.


async def test_what_comes_in_during_an_answer_is_held_unparsed(link: Connection) -> None:
    link.receive(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n", at=0)
    await link.serve()
    for _ in range(1000):
        link.receive(GET, at=0)
    assert not link.protocol.pipeline
    assert not link.wire.paused  # its end would be seen
    link.receive(b"\r\n" * HELD_BYTES, at=0)
    assert link.wire.paused
    link.app.let_go.set()
    while len(link.app.requests) < 1001:
        await link.serve()
    assert not link.wire.paused


async def test_nothing_behind_a_refusal_is_read(link: Connection) -> None:
    link.receive(b"GET /" + b"x" * 100_000, at=0)
    check_envelope(link.wire.answer(), 414, "url_too_long")
    link.receive(GET, at=0)
    await link.serve()
    assert link.wire.written == b""
    assert link.app.requests == []
    assert not link.wire.paused
    link.receive(b"x" * LINGER_BYTES, at=0)
    assert link.wire.paused


async def test_a_refusal_is_not_written_into_an_answer_that_has_begun(link: Connection) -> None:
    link.receive(b"POST /eager HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", at=0)
    await link.serve()
    assert link.wire.written.endswith(b"well\r\n")
    link.receive(b"x", at=0)
    assert link.wire.aborted
    assert link.wire.written.endswith(b"well\r\n")
