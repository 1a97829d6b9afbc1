"""The fake vLLM server answers as one would, whole requests only, one after the other on a connection."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from loadtests.fake_upstream import COMPLETION_BYTES, MODELS_BYTES, FakeUpstream

POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nContent-Length: 4\r\n\r\n{  }"
GET = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def connection() -> AsyncIterator[Streams]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: FakeUpstream(delay_s=0.0), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    yield reader, writer
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


async def read(reader: asyncio.StreamReader, expected: bytes) -> None:
    assert await asyncio.wait_for(reader.readexactly(len(expected)), 30) == expected


async def test_requests_in_pieces_and_several_at_once(connection: Streams) -> None:
    reader, writer = connection
    for index in range(len(POST)):
        writer.write(POST[index : index + 1])
        await writer.drain()
    await read(reader, COMPLETION_BYTES)
    writer.write(GET + GET)
    await read(reader, MODELS_BYTES + MODELS_BYTES)


async def test_a_body_that_is_not_whole_is_not_answered(connection: Streams) -> None:
    reader, writer = connection
    writer.write(POST[:-1])
    await writer.drain()
    writer.write(POST[-1:] + GET)
    answered = await asyncio.wait_for(reader.readexactly(len(COMPLETION_BYTES + MODELS_BYTES)), 30)
    assert answered.count(b"HTTP/1.1 200 OK") == 2
