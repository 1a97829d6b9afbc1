"""The protocol before the whole gateway: bodies too large, clients that do not read, too many connections."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import uvicorn

from gateway.api_server import create_app
from gateway.config import Limits
from gateway.http_limits import HttpLimits
from gateway.http_protocol import LINGER_BYTES, http_protocol
from tests.gateway.fake_servers import FakeVllm
from tests.gateway.raw_http import Edge, RawClient
from tests.gateway.stack import InProcessServer, check_envelope, config_for

BODY = msgspec.json.encode({"messages": [{"role": "user", "content": "Hi"}]})
JSON = {"content-type": "application/json"}
MAX_BODY = 4096
ENDLESS_BLOCKS = 1024
KERNEL_BYTES = 12 * 2**20
"""What the two sockets of a loopback connection may hold."""


@dataclass
class Front(Edge):
    """A gateway with our protocol before a FakeVllm."""

    vllm: FakeVllm

    async def check_serves(self) -> None:
        """A chat on a new connection is answered."""
        async with self.connect() as client:
            await client.send(chat(BODY))
            assert (await client.answer()).status_code == 200


@asynccontextmanager
async def front(**limits: Any) -> AsyncGenerator[Front, None]:
    """It runs."""
    vllm, counted = FakeVllm(), list[str]()
    await vllm.start()
    config = uvicorn.Config(
        create_app(config_for(vllm.url, None, limits=Limits(max_body_bytes=MAX_BODY))),
        host="127.0.0.1",
        port=0,
        http=http_protocol(HttpLimits(**limits), counted.append),
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = InProcessServer(config)
    serving = asyncio.create_task(server.serve())
    await server.up.wait()
    try:
        yield Front(server.servers[0].sockets[0].getsockname()[1], counted, server.server_state, vllm)
    finally:
        server.should_exit = True
        await serving
        await vllm.stop()


def chat(body: bytes, headers: bytes = b"") -> bytes:
    """A chat as raw bytes; without a length where `headers` say how it ends."""
    if b"ransfer" not in headers and b"ength" not in headers:
        headers += b"Content-Length: %d\r\n" % len(body)
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        + headers
        + b"\r\n"
        + body
    )


def padded(size: int) -> bytes:
    """A chat's body with white space to this size."""
    return BODY + b" " * (size - len(BODY))


async def test_a_body_of_just_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    async with front() as server, server.connect() as client:
        await client.send(chat(padded(MAX_BODY)))
        assert (await client.answer()).status_code == 200
        await client.send(chat(padded(MAX_BODY + 1)))
        check_envelope(await client.answer(), 413, "body_too_large")
        await client.send(chat(BODY))  # what is left of it is little: the connection goes on
        assert (await client.answer()).status_code == 200


async def test_who_asks_before_sending_is_told_to_go_on() -> None:
    async with front() as server, server.connect() as client:
        await client.send(chat(b"", b"Expect: 100-continue\r\nContent-Length: %d\r\n" % len(BODY)))
        assert (await client.answer()).status_code == 100
        await client.send(BODY)
        assert (await client.answer()).status_code == 200


async def test_who_asks_before_sending_too_much_is_told_not_to() -> None:
    async with front() as server, server.connect() as client:
        await client.send(chat(b"", b"Expect: 100-continue\r\nContent-Length: 100000000\r\n"))
        check_envelope(await client.answer(), 413, "body_too_large")
        assert await client.rest() == b""


async def test_a_client_that_sends_all_before_it_reads_finds_the_refusal() -> None:
    async with front() as server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        for _ in range(5):
            body = padded(LINGER_BYTES - 2**20)
            answer = await client.post("/v1/chat/completions", content=body, headers=JSON)
            check_envelope(answer, 413, "body_too_large")


async def test_a_body_without_end_is_read_no_further_than_the_limit_and_a_little() -> None:
    async with front() as server, server.connect() as client:
        await client.send(chat(b"", b"Transfer-Encoding: chunked\r\n"))
        block = b"10000\r\n" + b" " * 65536 + b"\r\n"
        for _ in range(ENDLESS_BLOCKS):
            await client.send(block)
        check_envelope(await client.answer(), 413, "body_too_large")
        assert await client.rest() == b""
        sent = ENDLESS_BLOCKS * len(block) - client.writer.transport.get_write_buffer_size()
        assert sent < MAX_BODY + LINGER_BYTES + KERNEL_BYTES
        await server.check_serves()


async def test_a_client_that_does_not_read_is_cut_off_and_its_generation_ended() -> None:
    event = b'data: {"choices": [{"index": 0, "delta": {"content": "' + b"x" * 60_000 + b'"}}]}\n\n'
    async with front(stall_s=0.2) as server, server.connect(receive_buffer=4096) as client:
        server.vllm.raw_stream = [event] * 2000
        await client.send(chat(msgspec.json.encode({**msgspec.json.decode(BODY), "stream": True})))
        await server.vllm.arrived.wait()
        await server.vllm.wait_idle()
        assert server.vllm.aborted == 1
        assert server.counted == ["slow_reader"]
        server.vllm.raw_stream = None
        await server.check_serves()


async def test_beyond_the_connections_there_is_a_503_but_for_probes() -> None:
    async with (
        front(connections=2) as server,
        server.connect() as first,
        server.connect(),
        server.connect() as third,
    ):
        await first.send(chat(BODY))
        assert (await first.answer()).status_code == 200
        await third.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await third.answer()).status_code == 200
        await third.send(chat(BODY))
        answer = await third.answer()
        check_envelope(answer, 503, "too_many_connections")
        assert answer.headers["retry-after"] == "1"
        assert await third.rest() == b""
        await first.send(chat(BODY))
        assert (await first.answer()).status_code == 200


async def test_far_beyond_the_connections_nobody_is_heard() -> None:
    limits = HttpLimits(connections=2)
    async with front(connections=2) as server:
        clients = [await RawClient.open(server.port) for _ in range(limits.connections_heard)]
        async with server.connect() as last:
            assert await last.rest() == b""
        assert server.counted == ["too_many_connections"]
        for client in clients:
            client.writer.write_eof()
            assert await client.rest() == b""
            await client.close()
        await server.check_serves()
