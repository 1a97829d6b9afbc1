"""How much HTTP a client may send, and how slowly: the limits, and what makes a request's head acceptable.

`HttpProtocol` (gateway/http_protocol.py) enforces them before the application sees anything. The parser,
httptools in its strict mode, refuses most malformed framing by itself; `check_head` refuses what it lets
through.
"""

import re
import resource
from collections.abc import Iterable
from typing import Annotated

import msgspec

from gateway.errors import HeadersTooLargeError, InvalidRequestError, UrlTooLongError

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(gt=0)]

MOST_CONNECTIONS = 8192
MOST_OPEN_FILES = 65536
_HOST = re.compile(rb"(?:[\w.~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?", re.ASCII)
_VERSIONS = frozenset({"1.0", "1.1"})


class HttpLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Per connection, but for `connections`. Deadlines are absolute: no trickle of bytes extends them."""

    head_s: Seconds = 10.0
    """From a request's first byte, or the connection's start, to the end of its headers; then 408."""
    body_s: Seconds = 30.0
    """From the end of the headers to the end of the body; then 408."""
    head_bytes: Count = 32 * 1024
    """Request line and headers; then 431."""
    headers: Count = 100
    """Then 431."""
    url_bytes: Count = 8 * 1024
    """Then 414."""
    stall_s: Seconds = 60.0
    """A client that takes less than 64 KiB of its waiting answer in this time is cut off."""
    connections: Count = MOST_CONNECTIONS // 2
    """At once, per worker. Beyond it requests get a 503, and an eighth above it connections are closed
    unheard."""

    @property
    def connections_heard(self) -> int:
        """Connections that are read from: those beyond `connections` to be told so."""
        return self.connections + max(self.connections // 8, 16)


def raise_open_files() -> int:
    """Let this process open as many files as the system allows, at most 65,536; how many those are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return MOST_OPEN_FILES if soft == resource.RLIM_INFINITY else soft


def connections_for(open_files: int) -> int:
    """The connections that clients may hold where a process may open so many files: half of them, since each
    request needs connections upstream too; at most 8,192."""
    return max(1, min(MOST_CONNECTIONS, open_files // 2))


def check_head(version: str, url: bytes, headers: Iterable[tuple[bytes, bytes]], limits: HttpLimits) -> None:
    """Refuse what the parser lets through.

    Args:
        version: as in `HTTP/1.1`, without the name.
        headers: names in lower case.

    Raises:
        UrlTooLongError: 414.
        HeadersTooLargeError: 431, too many headers or too many bytes.
        InvalidRequestError: 400, an HTTP of another age, a Host that is not one name, or a transfer encoding
            other than `chunked`.
    """
    if version not in _VERSIONS:
        raise refused("This server speaks HTTP/1.1.")
    if len(url) > limits.url_bytes:
        raise UrlTooLongError(f"The URL may have at most {limits.url_bytes} bytes.")
    hosts, count, size = 0, 0, len(url)
    for name, value in headers:
        count += 1
        size += len(name) + len(value) + 4
        if name == b"host":
            hosts += 1
            _check_host(value)
        elif name == b"transfer-encoding":
            _check_coding(value, version)
    if count > limits.headers or size > limits.head_bytes:
        raise headers_too_large(limits)
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise refused("A request has exactly one Host header.")


def headers_too_large(limits: HttpLimits) -> HeadersTooLargeError:
    """431, with what would be taken."""
    return HeadersTooLargeError(
        f"A request may have at most {limits.headers} headers, of {limits.head_bytes} bytes in all."
    )


def refused(message: str) -> InvalidRequestError:
    """400 for what is not HTTP as this server speaks it."""
    return InvalidRequestError(message, code="invalid_http")


def _check_host(value: bytes) -> None:
    if _HOST.fullmatch(value) is None:
        raise refused("The Host header is not a name, with or without a port.")


def _check_coding(value: bytes, version: str) -> None:
    # HTTP/1.0 has none: a proxy of that age on the way would see another body (RFC 9112, 6.1).
    if value.strip().lower() != b"chunked" or version == "1.0":
        raise refused("The only transfer encoding here is `chunked`, in HTTP/1.1.")
