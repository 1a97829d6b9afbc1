"""Server-sent events as OpenAI's API uses them: `data: {json}`, a blank line, at the end `data: [DONE]`."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.errors import GatewayError, UpstreamError
from gateway.upstream import UNREADABLE

EVENT_STREAM = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
MAX_EVENT_BYTES = 8 * 1024 * 1024
_BOUNDARY = re.compile(rb"\r?\n\r?\n")
_LINE_END = re.compile(rb"\r?\n")


class EventSplitter:
    """Cuts a byte stream into whole events, wherever the network cut it before."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The events completed by `data`, each with its blank line, byte for byte as they came.

        Raises:
            UpstreamError: an event beyond 8 MiB.
        """
        searched = max(len(self._rest) - 3, 0)
        self._rest += data
        start = 0
        for boundary in _BOUNDARY.finditer(self._rest, searched):
            yield bytes(self._rest[start : boundary.end()])
            start = boundary.end()
        del self._rest[:start]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise UpstreamError("The policy server sent an event that is too large.")

    def end(self) -> Iterator[bytes]:
        """At the end of the stream: a `[DONE]` whose blank line is missing. Half of any other event is
        none."""
        if data_of(self._rest) == b"[DONE]":
            yield bytes(self._rest)


def data_of(event: bytes | bytearray) -> bytes:
    """The data of one event; empty for comments."""
    lines = [line[5:].removeprefix(b" ") for line in _LINE_END.split(event) if line.startswith(b"data:")]
    return b"\n".join(lines)


def is_error(data: bytes) -> bool:
    """Whether an event's data is an error object rather than a chunk."""
    if b'"error"' not in data:
        return False
    try:
        value = msgspec.json.decode(data)
    except UNREADABLE:
        return False
    if not isinstance(value, dict) or "choices" in value:
        return False
    return bool(value.get("error")) or value.get("object") == "error"


def is_aborted(data: bytes) -> bool:
    """Whether an event's data is a chunk in which the server gives up a choice, as vLLM does when it is told
    to leave."""
    if b'"abort"' not in data:
        return False
    try:
        return any(choice.get("finish_reason") == "abort" for choice in msgspec.json.decode(data)["choices"])
    except (*UNREADABLE, KeyError, TypeError, AttributeError):
        return False


def encode_event(value: Any) -> bytes:
    """One event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def error_event(error: GatewayError) -> bytes:
    """An error after the headers have gone: the envelope as an event. No `[DONE]` follows."""
    return b"data: " + error.body() + b"\n\n"
