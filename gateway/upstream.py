"""HTTP to the servers behind the gateway: one pooled client, and foreign failures translated.

aiohttp rather than httpx: httpx loses pool slots when requests are cancelled, and best-of-N cancels all the
time. Idle connections are given up before vLLM gives them up (5 s); one that died all the same is retried
once, provided that it had been used before and no byte of an answer came.
"""

import io
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import aiohttp

from gateway.errors import SilentError, UpstreamError, UpstreamUnavailableError

KEEPALIVE_S = 4.0
CONNECT_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 2.0
LARGE_BODY_BYTES = 2**20

UNREADABLE = (ValueError, RecursionError)
"""What reading foreign JSON raises: msgspec's errors and wrong UTF-8, and nesting beyond the stack."""
MAX_TOKENS = 2**53

_DIED = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientConnectionResetError)


_connected: ContextVar[list[bool]] = ContextVar("_connected")


class NotingConnector(aiohttp.TCPConnector):
    """A pool that tells an attempt whether its connection is a new one. aiohttp's tracing would, too, for a
    tenth of what a request costs."""

    async def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
        _connected.get().append(True)
        return await super()._create_connection(*args, **kwargs)


class Fetched(NamedTuple):
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class HttpUpstream:
    """A base URL and a connection pool. `open` and `close` belong to one event loop."""

    def __init__(self, url: str, timeout_s: float, api_key: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @asynccontextmanager
    async def post(
        self, path: str, body: bytes, headers: dict[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An open answer to a JSON POST. Leaving early closes the connection, which aborts the work behind
        it.

        Raises:
            UpstreamUnavailableError: no connection, or it died before an answer.
            SilentError: silence for longer than the timeout.
            UpstreamError: an answer that is not HTTP.
        """
        response = await self._send(path, body, self._headers | (headers or {}))
        try:
            yield response
        finally:
            # A fully read answer has given its connection back; any other is closed.
            response.close()

    async def fetch(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> "Fetched":
        """A whole answer to a JSON POST. Cancelling it closes the connection.

        Raises:
            UpstreamUnavailableError, SilentError, UpstreamError: see `post`; or it broke off in its middle.
        """
        response = await self._send(path, body, self._headers | (headers or {}))
        try:
            with reading():
                return Fetched(response.status, response.headers, await response.read())
        finally:
            response.close()

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a short GET.

        Raises:
            UpstreamUnavailableError: no answer within 2 s.
        """
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        _connected.set([])
        try:
            async with self._client().get(
                self._url + path,
                headers=self._headers,
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamUnavailableError("A server behind the gateway does not answer.") from error

    async def _send(self, path: str, body: bytes, headers: dict[str, str]) -> aiohttp.ClientResponse:
        new: list[bool] = []
        _connected.set(new)
        try:
            return await self._attempt(path, body, headers)
        except aiohttp.ClientError as error:
            if new or not isinstance(error, _DIED):
                raise _translated(error) from error
        try:
            return await self._attempt(path, body, headers)
        except aiohttp.ClientError as error:
            raise _translated(error) from error

    async def _attempt(self, path: str, body: bytes, headers: dict[str, str]) -> aiohttp.ClientResponse:
        # aiohttp wants large bodies as files: it would write bytes in one go, and warns.
        data = body if len(body) <= LARGE_BODY_BYTES else io.BytesIO(body)
        return await self._client().post(self._url + path, data=data, headers=headers, allow_redirects=False)

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=NotingConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
                trust_env=False,
                auto_decompress=False,
                read_bufsize=2**18,
            )
        return self._session


@contextmanager
def reading() -> Iterator[None]:
    """Around reads of an open answer.

    Raises:
        SilentError: silence for longer than the timeout.
        UpstreamError: the connection died in the middle of the answer.
    """
    try:
        yield
    except aiohttp.ServerTimeoutError as error:
        raise _silent() from error
    except aiohttp.ClientError as error:
        raise UpstreamError("The server behind the gateway broke off in the middle of its answer.") from error


async def read_at_most(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body of an open answer.

    Raises:
        UpstreamError: it has more than `limit` bytes.
        SilentError, UpstreamError: see `reading`.
    """
    body = bytearray()
    with reading():
        async for data in response.content.iter_any():
            body += data
            if len(body) > limit:
                raise UpstreamError("The server behind the gateway answered far too much.")
    return bytes(body)


def token_count(value: object) -> int:
    """A foreign server's count of tokens; 0 where it is none."""
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else 0


def _unavailable() -> UpstreamUnavailableError:
    return UpstreamUnavailableError("The server behind the gateway cannot be reached.")


def _silent() -> SilentError:
    return SilentError("The server behind the gateway fell silent.")


def _translated(error: aiohttp.ClientError) -> UpstreamError | UpstreamUnavailableError | SilentError:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return _unavailable()
    if isinstance(error, aiohttp.ServerTimeoutError):
        return _silent()
    if isinstance(error, aiohttp.ClientConnectionError):
        return _unavailable()
    return UpstreamError("The server behind the gateway answered something that is not HTTP.")
