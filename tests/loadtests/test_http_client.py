"""The raw client reads what servers send, however it is cut, and says what went wrong."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.errors import LoadTestError
from loadtests.http_client import HttpClient, Reply

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]
OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = OK + b"Content-Length: 5\r\nX-Some: Thing\r\n\r\nhello"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"


class Server:
    """Reads requests, sends the same bytes after each; remembers what it read and who hung up."""

    def __init__(self, answer: bytes, *, then_close: bool = False) -> None:
        self.answer, self.then_close = answer, then_close
        self.requests: list[bytes] = []
        self.connections = 0
        self.hung_up = asyncio.Event()
        self.got_one = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while data := await reader.read(65536):
            self.requests.append(data)
            self.got_one.set()
            writer.write(self.answer)
            if self.then_close:
                break
        self.hung_up.set()
        writer.close()


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    handled: list[asyncio.Task[None]] = []

    def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handled.append(asyncio.ensure_future(handler(reader, writer)))

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"http://{host}:{port}"
    await asyncio.wait_for(asyncio.gather(*handled), 30)  # the client has hung up
    server.close()
    await server.wait_closed()


async def test_one_connection_serves_one_request_after_another() -> None:
    server = Server(WHOLE)
    async with serving(server) as url, HttpClient(url) as http:
        for _ in range(3):
            reply = await http.send("POST", "/p", b"{}", {"x-mine": "1"})
            assert (reply.status, reply.body, reply.error) == (200, b"hello", None)
            assert reply.headers["x-some"] == "Thing"
        assert server.connections == 1
        host = url.removeprefix("http://").encode()
        assert server.requests[0] == (
            b"POST /p HTTP/1.1\r\nhost: " + host + b"\r\ncontent-type: application/json\r\n"
            b"content-length: 2\r\nx-mine: 1\r\n\r\n{}"
        )


async def test_requests_at_once_have_connections_of_their_own() -> None:
    server = Server(CHUNKED)
    async with serving(server) as url, HttpClient(url) as http:
        replies = await asyncio.gather(*(http.send("GET", "/") for _ in range(4)))
        assert [reply.body for reply in replies] == [b"abcde"] * 4
        assert server.connections == 4


async def test_a_server_that_says_close_is_taken_at_its_word() -> None:
    server = Server(OK + b"connection: close\r\ncontent-length: 0\r\n\r\n")
    async with serving(server) as url, HttpClient(url) as http:
        assert [(await http.send("GET", "/")).error for _ in range(2)] == [None, None]
        assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [(b"", "reset"), (WHOLE[:-1], "cut"), (CHUNKED[:-5], "cut"), (b"no HTTP at all\r\n\r\n", "reset")],
)
async def test_an_answer_that_is_not_whole_says_so(answer: bytes, error: str) -> None:
    async with serving(Server(answer, then_close=True)) as url, HttpClient(url) as http:
        assert (await http.send("GET", "/")).error == error


async def test_silence_ends_at_the_time_limit() -> None:
    async with serving(Server(b"")) as url, HttpClient(url, timeout_s=0.05) as http:
        assert (await http.send("GET", "/")).error == "time-out"


async def test_nobody_there() -> None:
    async with HttpClient("http://127.0.0.1:9") as http:
        assert (await http.send("GET", "/")).error == "no connection"


async def test_cancelling_hangs_up() -> None:
    server = Server(b"")
    async with serving(server) as url, HttpClient(url) as http:
        sending = asyncio.create_task(http.send("GET", "/"))
        await asyncio.wait_for(server.got_one.wait(), 30)
        sending.cancel()
        await asyncio.wait_for(server.hung_up.wait(), 30)


@pytest.mark.parametrize("url", ["ftp://x", "http://", "nonsense://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(LoadTestError, match="must be an address"):
        HttpClient(url)


@given(st.lists(st.binary(min_size=1, max_size=5), min_size=1, max_size=6), st.data())
def test_each_byte_of_a_body_has_its_time(pieces: list[bytes], data: st.DataObject) -> None:
    reply = Reply(pieces=pieces, times=[float(index) for index in range(len(pieces))])
    position = data.draw(st.integers(0, len(reply.body) - 1))
    expected = [index for index, piece in enumerate(pieces) for _ in piece][position]
    assert reply.times_of([position, 0]) == [expected, 0.0]
    assert reply.first_at == 0.0
