"""Requests however they are cut, several on a connection, slow readers."""

import asyncio

import pytest

from loadtests.fakes.http_server import Call, listen

POST = b"POST /p HTTP/1.1\r\nhost: x\r\nContent-Length: 4\r\n\r\nbody"
CHUNKED = b"POST /p HTTP/1.1\r\nhost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n"
ANSWER = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 6\r\n\r\n"body"'


async def echo(call: Call) -> None:
    assert (call.method, call.path, call.headers["host"]) == ("POST", "/p", "x")
    await call.answer(call.body.decode())


@pytest.mark.parametrize("request_bytes", [POST, CHUNKED])
@pytest.mark.parametrize("piece", [1, 7, 1000])
async def test_requests_in_pieces_and_several_at_once(request_bytes: bytes, piece: int) -> None:
    server = await listen(echo, 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    sent = request_bytes * 3
    for start in range(0, len(sent), piece):
        writer.write(sent[start : start + piece])
        await writer.drain()
    assert await asyncio.wait_for(reader.readexactly(len(ANSWER) * 3), 30) == ANSWER * 3
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


async def test_what_is_no_http_is_hung_up_on() -> None:
    server = await listen(echo, 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"nonsense\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 30)
    writer.close()
    server.close()
    await server.wait_closed()


async def test_a_slow_reader_is_waited_for() -> None:
    sent = 0

    async def flood(call: Call) -> None:
        nonlocal sent
        while True:
            await call.send(b"x" * 65536)
            sent += 1
            await asyncio.sleep(0)

    server = await listen(flood, 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=1024)
    writer.write(POST)
    before = -1
    while sent != before:  # until it stands still, which it only does when it waits
        before = sent
        await asyncio.sleep(0.05)
    assert sent * 65536 < 64 * 1024 * 1024
    writer.transport.abort()
    server.close()
    await server.wait_closed()
