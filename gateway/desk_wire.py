"""What the supervisor and a worker say to each other, and the socket pair on which they say it.

A frame is its length in four bytes and a MessagePack list of messages: what is said during one turn of the
event loop goes out in one write.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, Generic, TypeVar, cast

import msgspec

from gateway.admission import Refusal, Ticket
from gateway.allowance import Rate
from gateway.config import GatewayConfig
from gateway.flags import ServerOptions

LENGTH = Struct(">I")


class Ask(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A worker's request wants a ticket."""

    id: int
    ticket: Ticket


class Done(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """It has ended, or has given up waiting."""

    id: int
    tokens: int
    """To be charged to its key."""


class Up(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The worker listens."""


class Start(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The first thing a worker hears."""

    number: int
    """From 0; who replaces a dead worker has its number."""
    listener: int
    """The listening socket's file descriptor."""
    folder: str
    """Where workers share their metrics."""
    options: ServerOptions
    config: GatewayConfig


class Granted(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The ticket is granted."""

    id: int
    queue_s: float
    rate: Rate


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """It is not."""

    id: int
    refusal: Refusal


class Leave(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Drain."""

    delay_s: float


class Hurry(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Drain, without waiting for anybody."""


class Reload(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """SIGHUP came; exactly one of the two is there."""

    config: GatewayConfig | None = None
    error: str | None = None
    """What is wrong with the new configuration."""


FromWorker = Ask | Done | Up
ToWorker = Start | Granted | Refused | Leave | Hurry | Reload
MessageT = TypeVar("MessageT")


class Channel(asyncio.Protocol, Generic[MessageT]):
    """One end of the socket pair in an event loop; messages of `kind` come in."""

    def __init__(self, kind: Any, on_message: Callable[[MessageT], None]) -> None:
        self.lost = asyncio.Event()
        """The other side is gone."""
        self._decoder: msgspec.msgpack.Decoder[list[MessageT]] = msgspec.msgpack.Decoder(list[kind])
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._incoming = bytearray()
        self._outgoing: list[FromWorker | ToWorker] = []

    async def connect(self, end: socket.socket) -> None:
        """Begin to listen and to speak on this end, which is the channel's from now on."""
        await self._loop.create_unix_connection(lambda: self, sock=end)

    def send(self, message: FromWorker | ToWorker) -> None:
        """Say something; in vain when the other side is gone."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(message)

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast(asyncio.WriteTransport, transport)  # which uvloop's do not derive from

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._incoming += data
        while (end := _frame_end(self._incoming)) is not None:
            messages = self._decoder.decode(memoryview(self._incoming)[LENGTH.size : end])
            del self._incoming[:end]
            for message in messages:
                self._on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self.lost.set()

    def _flush(self) -> None:
        messages, self._outgoing = self._outgoing, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(messages))


def frame(messages: Sequence[FromWorker | ToWorker]) -> bytes:
    """Messages as they go over the socket."""
    content = msgspec.msgpack.encode(messages)
    return LENGTH.pack(len(content)) + content


def first_message(end: socket.socket) -> Start:
    """What a worker hears before it has an event loop, and nothing that may follow it.

    Raises:
        EOFError: the supervisor is gone.
    """
    (length,) = LENGTH.unpack(_exactly(end, LENGTH.size))
    (start,) = msgspec.msgpack.decode(_exactly(end, length), type=list[Start])
    return start


def _exactly(end: socket.socket, size: int) -> bytes:
    data = end.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise EOFError
    return data


def _frame_end(buffer: bytearray) -> int | None:
    if len(buffer) < LENGTH.size:
        return None
    end = LENGTH.size + int(LENGTH.unpack_from(buffer)[0])
    return end if len(buffer) >= end else None
