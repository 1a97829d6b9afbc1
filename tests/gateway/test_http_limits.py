"""What a head may be, at both sides of each limit; and how many connections fit into a process."""

import resource
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import HeadersTooLargeError, InvalidRequestError, UrlTooLongError
from gateway.http_limits import HttpLimits, check_head, connections_for, raise_open_files
from tests.gateway.raw_http import Recorder, edge
from tests.gateway.stack import check_envelope

HOST = (b"host", b"a")
LIMITS = HttpLimits()


def test_the_url_may_be_8_kib() -> None:
    check_head("1.1", b"/" * 8192, [HOST], LIMITS)
    with pytest.raises(UrlTooLongError, match="8192"):
        check_head("1.1", b"/" * 8193, [HOST], LIMITS)


def test_there_may_be_100_headers() -> None:
    check_head("1.1", b"/", [HOST, *[(b"x", b"y")] * 99], LIMITS)
    with pytest.raises(HeadersTooLargeError, match="100"):
        check_head("1.1", b"/", [HOST, *[(b"x", b"y")] * 100], LIMITS)


def test_the_headers_may_have_32_kib() -> None:
    # "/" 1, "host: a" with its line's end 4 + 1 + 4, "x: " 1 + 4: 32768 - 15 are left for the value.
    check_head("1.1", b"/", [HOST, (b"x", b"y" * 32753)], LIMITS)
    with pytest.raises(HeadersTooLargeError, match="32768"):
        check_head("1.1", b"/", [HOST, (b"x", b"y" * 32754)], LIMITS)


@given(
    version=st.sampled_from(["0.9", "1.0", "1.1", "2.0"]),
    url=st.binary(max_size=30),
    headers=st.lists(
        st.tuples(st.sampled_from([b"host", b"transfer-encoding", b"x"]), st.binary(max_size=30)), max_size=5
    ),
)
def test_any_head_is_taken_or_refused_with_a_400(
    version: str, url: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    hosts = [value for name, value in headers if name == b"host"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    with suppress(InvalidRequestError):
        check_head(version, url, headers, LIMITS)
        assert version in {"1.0", "1.1"}
        assert len(hosts) == 1 or (not hosts and version == "1.0")
        assert all(value.strip().lower() == b"chunked" and version == "1.1" for value in codings)


@pytest.mark.parametrize("field", ["head_s", "body_s", "stall_s", "head_bytes", "headers", "url_bytes"])
def test_a_limit_of_nothing_is_no_limit_to_have(field: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({field: 0}, HttpLimits)


@pytest.mark.parametrize(
    ("open_files", "connections"), [(1, 1), (256, 128), (1024, 512), (16_384, 8192), (65_536, 8192)]
)
def test_half_of_the_open_files_are_for_clients(open_files: int, connections: int) -> None:
    assert connections_for(open_files) == connections


def test_the_process_may_open_what_the_system_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[0]), before[1]))
        assert raise_open_files() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert raise_open_files() == min(before[1], 65_536)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# The same through a connection, where a head need never end.


def url_of(size: int) -> bytes:
    """A head whose URL has this many bytes."""
    return b"GET /" + b"x" * (size - 1) + b" HTTP/1.1\r\nHost: a\r\n\r\n"


def headers_of(size: int) -> bytes:
    """A head of so many bytes, as check_head counts them."""
    return b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * (size - 15) + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (url_of(8192), 200, ""),
        (url_of(8193), 414, "url_too_long"),
        (url_of(10_000_000), 414, "url_too_long"),
        (headers_of(32_768 - 30), 200, ""),
        (headers_of(32_769), 431, "headers_too_large"),
        (headers_of(10_000_000), 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 99 + b"\r\n", 200, ""),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100 + b"\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100_000, 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X" * 100_000, 431, "headers_too_large"),
    ],
    ids=range(10),
)
async def test_heads_at_both_sides_of_the_limits(raw: bytes, status: int, code: str) -> None:
    async with edge(Recorder()) as server:
        async with server.connect() as client:
            await client.send(raw)
            answer = await client.answer()
            if status == 200:
                assert answer.status_code == 200
            else:
                check_envelope(answer, status, code)
                assert await client.rest() == b""
        assert server.counted == ([code] if code else [])
        await server.check_serves()


CHUNKED = b"POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "endless",
    [
        CHUNKED + b"0\r\n" + b"X: y\r\n" * 100_000,
        CHUNKED + b"0\r\nX: " + b"y" * 1_000_000,
        CHUNKED + b"3;" + b"x" * 1_000_000,
        CHUNKED + b"1;xxxxxxxx\r\nx\r\n" * 100_000,
    ],
    ids=["trailers", "a trailer", "an extension", "extensions"],
)
async def test_framing_without_end_is_refused(endless: bytes) -> None:
    app = Recorder()
    async with edge(app) as server:
        async with server.connect() as client:
            await client.send(endless)
            check_envelope(await client.answer(), 400, "invalid_http")
        assert app.requests == []
        await server.check_serves()


async def test_a_body_in_chunks_of_one_byte_is_taken() -> None:
    async with edge(Recorder()) as server, server.connect() as client:
        await client.send(CHUNKED + b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n")
        assert (await client.answer()).json() == ["POST", "/ok", 50_000]
