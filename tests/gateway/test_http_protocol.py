"""Framing: what is not plain HTTP/1.1 is refused in the envelope, and nothing behind it is served."""

import pytest

from gateway.http_protocol import CHUNKED_BYTES, SLICE, UNREAD_BYTES, HttpProtocol
from tests.gateway.raw_http import GET, Recorder, edge
from tests.gateway.stack import check_envelope

HOST = b"Host: a\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def post(headers: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    """A POST with these header lines."""
    return b"POST /ok HTTP/" + version + b"\r\n" + HOST + headers + b"\r\n\r\n" + body


def get(target: bytes = b"/ok", headers: bytes = HOST, version: bytes = b"HTTP/1.1") -> bytes:
    """A GET with these header lines."""
    return b"GET " + target + b" " + version + b"\r\n" + headers + b"\r\n"


CHUNKED = b"Transfer-Encoding: chunked"
END = b"0\r\n\r\n"
HOSTILE = {
    # Where a body ends: what a proxy in front could see another way.
    "length and chunks": post(b"Content-Length: 3\r\n" + CHUNKED, END),
    "chunks and length": post(CHUNKED + b"\r\nContent-Length: 3", END),
    "two lengths": post(b"Content-Length: 3\r\nContent-Length: 4", b"abc"),
    "two equal lengths": post(b"Content-Length: 3\r\nContent-Length: 3", b"abc"),
    "a list of lengths": post(b"Content-Length: 3, 3", b"abc"),
    "a signed length": post(b"Content-Length: +3", b"abc"),
    "a negative length": post(b"Content-Length: -1", b"abc"),
    "a length in hex": post(b"Content-Length: 0x3", b"abc"),
    "an empty length": post(b"Content-Length:", b"abc"),
    "a length beyond 64 bits": post(b"Content-Length: 99999999999999999999", b"abc"),
    "an unknown coding": post(b"Transfer-Encoding: xchunked", END),
    "the coding identity": post(b"Transfer-Encoding: identity", END),
    "two codings": post(b"Transfer-Encoding: gzip, chunked", END),
    "chunked not last": post(b"Transfer-Encoding: chunked, gzip", END),
    "chunked twice": post(CHUNKED + b"\r\n" + CHUNKED, END),
    "a control character before chunked": post(b"Transfer-Encoding: \x0bchunked", END),
    "chunks in HTTP/1.0": post(CHUNKED, END, b"1.0"),
    "space before the colon": post(b"Content-Length : 3", b"abc"),
    "a header that begins with space": b"POST /ok HTTP/1.1\r\n Content-Length: 3\r\nHost: a\r\n\r\nabc",
    "bare line feeds": b"GET /ok HTTP/1.1\nHost: a\n\n",
    "one bare line feed": b"GET /ok HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "a bare carriage return": b"GET /ok HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
    "a folded header": get(headers=HOST + b"X: a\r\n b\r\n"),
    "a folded Host": get(headers=b"Host: a\r\n b\r\n"),
    "NUL in a value": get(headers=HOST + b"X: a\0b\r\n"),
    "NUL in a name": get(headers=HOST + b"X\0: a\r\n"),
    "junk after a chunk": post(CHUNKED, b"3\r\nabcXX" + END),
    "a negative chunk": post(CHUNKED, b"-3\r\nabc\r\n" + END),
    "a chunk size in C's hex": post(CHUNKED, b"0x3\r\nabc\r\n" + END),
    "a chunk beyond 64 bits": post(CHUNKED, b"fffffffffffffffff\r\nabc\r\n" + END),
    "chunks with bare line feeds": post(CHUNKED, b"3\nabc\n0\n\n"),
    "a chunk extension with a bare line feed": post(CHUNKED, b"3;a\nabc\r\n" + END),
    # Host.
    "no Host": get(headers=b"X: y\r\n"),
    "two Hosts": get(headers=b"Host: a\r\nHost: b\r\n"),
    "two equal Hosts": get(headers=b"Host: a\r\nHost: a\r\n"),
    "an empty Host": get(headers=b"Host:\r\n"),
    "a Host with a path": get(headers=b"Host: a/b\r\n"),
    "a Host with a user": get(headers=b"Host: u@a\r\n"),
    "a Host with a bad port": get(headers=b"Host: a:http\r\n"),
    "a Host of two": get(headers=b"Host: a b\r\n"),
    "a Host that is not ASCII": get(headers=b"Host: \xc3\xa4\r\n"),
    # Other protocols.
    "HTTP/0.9": b"GET /ok\r\n\r\n",
    "HTTP/1.2": get(version=b"HTTP/1.2"),
    "HTTP/2.0 in letters": get(version=b"HTTP/2.0"),
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("1603010200010001fc0303") + bytes(300),
    "an answer": b"HTTP/1.1 200 OK\r\n\r\n",
    "a WebSocket": get(headers=HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    # Request lines.
    "an unknown method": b"FETCH /ok HTTP/1.1\r\nHost: a\r\n\r\n",
    "a method in lower case": b"get /ok HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target with a space": get(b"/ok x"),
    "no target": b"GET HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target without a slash": get(b"ok"),
    "a target that is not ASCII": get(b"/\xff"),
    "an absolute target without a path": get(b"http://a"),
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "byte by byte"])
async def test_what_is_not_http_is_refused_and_nothing_after_it_served(raw: bytes, whole: bool) -> None:
    app = Recorder()
    async with edge(app) as server:
        async with server.connect() as client:
            if whole:
                await client.send(raw + SMUGGLED)
            else:
                for byte in raw:
                    await client.send(bytes([byte]))
                await client.send(SMUGGLED)
            error = check_envelope(await client.answer(), 400, "invalid_http")
            assert error["type"] == "invalid_request_error"
            assert await client.rest() == b""
        assert app.requests == []
        assert server.counted == ["invalid_http"]
        await server.check_serves()


LIKED = {
    "a port": (get(headers=b"Host: example.org:8000\r\n"), 0),
    "IPv6": (get(headers=b"Host: [::1]:8000\r\n"), 0),
    "a name with an underscore": (get(headers=b"Host: my_service\r\n"), 0),
    "HTTP/1.0 without Host": (get(headers=b"", version=b"HTTP/1.0"), 0),
    "an absolute target": (get(b"http://b/ok"), 0),
    "empty lines first": (b"\r\n\r\n" + get(), 0),
    "a length": (post(b"Content-Length: 3", b"abc"), 3),
    "chunks": (post(CHUNKED, b"3\r\nabc\r\n" + END), 3),
    "chunks in capitals": (post(b"Transfer-Encoding: CHUNKED", b"3\r\nabc\r\n" + END), 3),
    "chunks with extensions": (post(CHUNKED, b"3;a=b\r\nabc\r\n" + END), 3),
    "an offer without Connection": (get(headers=HOST + b"Upgrade: websocket\r\n"), 0),
}


@pytest.mark.parametrize(("raw", "size"), LIKED.values(), ids=LIKED)
async def test_what_is_http_is_served(raw: bytes, size: int) -> None:
    app = Recorder()
    async with edge(app) as server, server.connect() as client:
        await client.send(raw)
        assert (await client.answer()).json() == [raw.strip().split(b" ")[0].decode(), "/ok", size]
        assert server.counted == []


@pytest.mark.parametrize("target", [b"/v1/../ok", b"//ok", b"/%2e%2e/ok", b"*"])
async def test_targets_are_taken_as_they_are(target: bytes) -> None:
    app = Recorder()
    async with edge(app) as server, server.connect() as client:
        await client.send(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.answer()).json()[1] == target.decode().replace("%2e", ".")


async def test_trailers_are_not_headers() -> None:
    app = Recorder()
    async with edge(app) as server, server.connect() as client:
        await client.send(post(CHUNKED, b"3\r\nabc\r\n0\r\nAuthorization: Bearer x\r\n\r\n"))
        assert (await client.answer()).json()[2] == 3
        assert [name for name, _ in app.headers] == [b"host", b"transfer-encoding"]


@pytest.mark.parametrize("body", [b"", b"abc", b"x" * 3 * SLICE], ids=["empty", "short", "long"])
@pytest.mark.parametrize("together", [True, False], ids=["one piece", "two pieces"])
async def test_an_offer_of_http2_is_not_taken_up(body: bytes, together: bool) -> None:
    # Java's client sends it with every request; the parser alone would lose the body.
    app = Recorder()
    async with edge(app) as server, server.connect() as client:
        offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
        head = post(offer + b"Content-Length: " + str(len(body)).encode())
        for part in [head + body + GET] if together else [head, body, GET]:
            await client.send(part)
        assert (await client.answer()).json() == ["POST", "/ok", len(body)]
        assert (await client.answer()).json() == ["GET", "/ok", 0]
        assert [path for _, path, _ in app.requests] == ["/ok", "/ok"]


async def test_the_clients_own_id_comes_back_with_a_refusal() -> None:
    async with edge(Recorder()) as server, server.connect() as client:
        await client.send(get(headers=b"Host: a b\r\nX-Request-ID: mine-1\r\n"))
        assert (await client.answer()).headers["x-request-id"] == "mine-1"


async def test_a_refusal_does_not_take_the_id_of_the_request_before_it() -> None:
    async with edge(Recorder()) as server, server.connect() as client:
        await client.send(get(headers=HOST + b"X-Request-ID: mine-1\r\n"))
        await client.answer()
        await client.send(b"\x16\x03\x01")
        assert (await client.answer()).headers["x-request-id"] != "mine-1"


async def test_pipelined_requests_are_answered_in_order() -> None:
    app = Recorder()
    count = 3000
    async with edge(app) as server, server.connect() as client:
        await client.send(b"".join(get(b"/%d" % number) for number in range(count)))
        answers = [(await client.answer()).json()[1] for _ in range(count)]
        assert answers == [f"/{number}" for number in range(count)]


async def test_few_pipelined_requests_are_begun_at_a_time() -> None:
    app = Recorder()
    async with edge(app) as server, server.connect() as client:
        await client.send(get(b"/held") + GET * 5000)
        await app.arrived.wait()
        (connection,) = server.state.connections
        assert isinstance(connection, HttpProtocol)
        assert len(connection.pipeline) <= SLICE // len(GET)
        app.let_go.set()
        assert [(await client.answer()).status_code for _ in range(5001)] == [200] * 5001


async def test_pipelined_bodies_arrive_whole() -> None:
    app = Recorder()
    body = b"x" * 10_000
    async with edge(app) as server, server.connect() as client:
        await client.send((get(b"/held") + post(b"Content-Length: 10000", body)) * 3)
        app.let_go.set()
        sizes = [(await client.answer()).json()[2] for _ in range(6)]
        assert sizes == [0, 10_000] * 3


@pytest.mark.parametrize(
    "bad", [b"\x16\x03\x01", post(CHUNKED, b"x"), post(CHUNKED, b"0" * 10_000 + b"x")], ids=range(3)
)
async def test_a_refusal_waits_for_the_answers_before_it(bad: bytes) -> None:
    app = Recorder()
    async with edge(app) as server, server.connect() as client:
        await client.send(get(b"/held") + GET + bad + SMUGGLED)
        await app.arrived.wait()
        app.let_go.set()
        assert (await client.answer()).json()[1] == "/held"
        assert (await client.answer()).json()[1] == "/ok"
        check_envelope(await client.answer(), 400, "invalid_http")
        assert await client.rest() == b""
        assert [path for _, path, _ in app.requests] == ["/held", "/ok"]


async def test_the_end_of_a_connection_reaches_the_request_at_work_behind_which_others_wait() -> None:
    app = Recorder()
    async with edge(app) as server:
        async with server.connect() as client:
            await client.send(get(b"/watched") + GET + GET)
            await app.arrived.wait()
        await app.left.wait()
        assert app.requests == []
        await server.check_serves()


async def test_a_closing_answer_is_the_last() -> None:
    app = Recorder()
    async with edge(app) as server, server.connect() as client:
        await client.send(get(headers=HOST + b"Connection: close\r\n") + SMUGGLED)
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.rest() == b""
        assert [path for _, path, _ in app.requests] == ["/ok"]


# Answers to what was not read, as to a request without a key.


def early(length: bytes) -> bytes:
    """The head of a request that is answered unread."""
    return b"POST /early HTTP/1.1\r\nHost: a\r\n" + length + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("length", "body"),
    [
        (b"Content-Length: 3", b"abc"),
        (b"Content-Length: %d" % UNREAD_BYTES, b"x" * UNREAD_BYTES),
        (CHUNKED, b"3\r\nabc\r\n" + END),
    ],
    ids=["short", "long", "chunked"],
)
async def test_a_body_answered_unread_is_dropped_and_the_connection_goes_on(
    length: bytes, body: bytes
) -> None:
    async with edge(Recorder()) as server, server.connect() as client:
        await client.send(early(length))
        assert (await client.answer()).json()[1] == "/early"
        await client.send(body + GET)
        assert (await client.answer()).json()[1] == "/ok"


@pytest.mark.parametrize(
    ("length", "body"),
    [
        (b"Content-Length: %d" % (UNREAD_BYTES + 1), b""),
        (b"Content-Length: 3\r\nExpect: 100-continue", b""),
        (CHUNKED, b"10001\r\n" + b"x" * (CHUNKED_BYTES + 1)),
    ],
    ids=["too long", "asked for", "chunked"],
)
async def test_a_body_answered_unread_ends_the_connection_where_it_is_not_worth_reading(
    length: bytes, body: bytes
) -> None:
    async with edge(Recorder()) as server, server.connect() as client:
        await client.send(early(length))
        assert (await client.answer()).json()[1] == "/early"
        await client.send(body)
        assert await client.rest() == b""
        await server.check_serves()
