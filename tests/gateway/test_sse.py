"""Server-sent events, however the network cuts them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamError
from gateway.sse import MAX_EVENT_BYTES, EventSplitter, data_of, is_error

EVENTS = ['data: {"a": "é\\n"}\n\n', ": ping\r\n\r\n", "data: x\r\ndata: y\r\n\r\n", "data: [DONE]\n\n"]
STREAM = "".join(EVENTS).encode()


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_come_out_whole_and_byte_for_byte(cuts: list[int]) -> None:
    splitter = EventSplitter()
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in pairwise(edges)]
    events = [event for piece in pieces for event in splitter.feed(piece)]
    assert events == [event.encode() for event in EVENTS]


def test_byte_by_byte() -> None:
    splitter = EventSplitter()
    assert b"".join(event for byte in STREAM for event in splitter.feed(bytes([byte]))) == STREAM


def test_the_data_of_an_event() -> None:
    assert [data_of(event.encode()) for event in EVENTS] == [
        '{"a": "é\\n"}'.encode(),
        b"",
        b"x\ny",
        b"[DONE]",
    ]


def test_an_event_without_end_is_refused() -> None:
    splitter = EventSplitter()
    assert list(splitter.feed(b"x" * MAX_EVENT_BYTES)) == []
    with pytest.raises(UpstreamError):
        list(splitter.feed(b"x"))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"error": {"message": "x"}}', True),
        (b'{"object": "error", "error": "x"}', True),
        (b'{"object": "error", "message": "x"}', True),
        (b'{"error": "\xff"}', False),
        (b'{"error": ' + b"[" * 100_000, False),
        (b'{"choices": [{"delta": {"content": "\\"error\\""}}]}', False),
        (b'{"choices": [], "error": null}', False),
        (b'{"error": null}', False),
        (b'{"error"', False),
        (b"[DONE]", False),
    ],
)
def test_what_is_an_error(data: bytes, expected: bool) -> None:
    assert is_error(data) is expected


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n"])
def test_done_counts_with_and_without_its_blank_line(end: bytes) -> None:
    splitter = EventSplitter()
    events = [*splitter.feed(b"data: {}\n\ndata: [DONE]" + end), *splitter.end()]
    assert events == [b"data: {}\n\n", b"data: [DONE]" + end]


@pytest.mark.parametrize("rest", [b"data: {}", b"data: [DON", b"x" * 100, b""])
def test_half_an_event_is_none(rest: bytes) -> None:
    splitter = EventSplitter()
    assert [*splitter.feed(rest), *splitter.end()] == []
