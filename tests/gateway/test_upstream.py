"""HTTP to the servers behind the gateway, against a server that says what it is told, byte for byte."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.errors import GatewayError, SilentError, UpstreamError, UpstreamUnavailableError
from gateway.upstream import LARGE_BODY_BYTES, MAX_TOKENS, HttpUpstream, read_at_most, reading, token_count

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
HALF = b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nhalf"
CLOSE = b""
SILENCE = None
Script = Sequence[Sequence[bytes | None]]


class Server:
    """Its n-th connection answers as `scripts[n]` says, request by request, and is closed after the last."""

    def __init__(self, scripts: Script) -> None:
        self._scripts = list(scripts)
        self.connections = 0
        self.bodies: list[bytes] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        script = self._scripts[self.connections]
        self.connections += 1
        try:
            for answer in script:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
                self.bodies.append(await reader.readexactly(int(length or 0)))
                if answer is None:
                    await reader.read()
                    return
                writer.write(answer)
                await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def behind(
    *scripts: Sequence[bytes | None], **fields: Any
) -> AsyncGenerator[tuple[Server, HttpUpstream], None]:
    """A server with these scripts, and a client for it."""
    fake = Server(scripts)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = HttpUpstream(fake.url + "/", **{"timeout_s": 5.0, **fields})
    try:
        yield fake, client
    finally:
        await client.close()
        server.close()
        await server.wait_closed()


async def test_a_connection_is_used_again_and_the_key_goes_along() -> None:
    async with behind([ANSWER, ANSWER]) as (server, http):
        for body in (b"1", b"22"):
            assert (await http.fetch("/x", body)).content == b"{}"
        assert (server.connections, server.bodies) == (1, [b"1", b"22"])


@pytest.mark.parametrize("size", [1, LARGE_BODY_BYTES + 1])
async def test_a_used_connection_that_dies_under_a_request_is_replaced_once(size: int) -> None:
    async with behind([ANSWER, CLOSE], [ANSWER]) as (server, http):
        await http.fetch("/x", b"first")
        assert (await http.fetch("/x", b"s" * size)).status == 200
        assert server.connections == 2
        assert server.bodies == [b"first", b"s" * size, b"s" * size]


async def test_a_second_death_is_the_answer() -> None:
    async with behind([ANSWER, CLOSE], [CLOSE]) as (server, http):
        await http.fetch("/x", b"")
        with pytest.raises(UpstreamUnavailableError):
            await http.fetch("/x", b"")
        assert server.connections == 2


async def test_a_new_connection_that_dies_is_not_replaced() -> None:
    async with behind([CLOSE]) as (server, http):
        with pytest.raises(UpstreamUnavailableError):
            await http.fetch("/x", b"")
        assert server.connections == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (SILENCE, SilentError),
        (HALF, UpstreamError),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", UpstreamError),
    ],
)
async def test_other_failures_are_translated_and_not_tried_again(
    answer: bytes | None, kind: type[GatewayError]
) -> None:
    async with behind([ANSWER, answer], timeout_s=0.2) as (server, http):
        await http.fetch("/x", b"")
        with pytest.raises(GatewayError) as caught:
            await http.fetch("/x", b"")
        assert (type(caught.value), server.connections) == (kind, 1)


async def test_nobody_there() -> None:
    async with behind() as (server, _):
        pass
    gone = HttpUpstream(server.url, 5.0)
    with pytest.raises(UpstreamUnavailableError):
        await gone.fetch("/x", b"")
    with pytest.raises(UpstreamUnavailableError):
        await gone.get("/x")
    await gone.close()


async def test_reads_of_an_open_answer_fail_in_our_words() -> None:
    async with behind([HALF], [HALF, SILENCE], timeout_s=0.2) as (_, http):
        async with http.post("/x", b"") as answer:
            with pytest.raises(UpstreamError, match="broke off"):
                await read_at_most(answer, 100)
        async with http.post("/x", b"") as answer:
            with pytest.raises(SilentError), reading():
                await answer.read()


async def test_no_more_is_read_than_may_be() -> None:
    async with behind([ANSWER], [ANSWER]) as (_, http):
        async with http.post("/x", b"") as answer:
            assert await read_at_most(answer, 2) == b"{}"
        async with http.post("/x", b"") as answer:
            with pytest.raises(UpstreamError, match="far too much"):
                await read_at_most(answer, 1)


async def test_redirects_are_not_followed() -> None:
    elsewhere = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
    async with behind([elsewhere, elsewhere]) as (_, http):
        assert (await http.fetch("/x", b"")).status == 302
        assert await http.get("/x") == (302, b"")


@pytest.mark.parametrize("value", [0, 7, MAX_TOKENS])
def test_a_count_of_tokens(value: int) -> None:
    assert token_count(value) == value


@pytest.mark.parametrize("value", [None, True, -1, MAX_TOKENS + 1, 3.0, "3", [3]])
def test_what_is_no_count_of_tokens_is_zero(value: object) -> None:
    assert token_count(value) == 0
