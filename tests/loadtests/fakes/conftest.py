"""Fakes in this event loop, and a client for each."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from loadtests.fakes.http_server import Serve, listen
from loadtests.http_client import HttpClient

Serving = Callable[[Serve], AbstractAsyncContextManager[HttpClient]]


@pytest.fixture
def serving() -> Serving:
    """A fake on a free port while the block lasts."""

    @asynccontextmanager
    async def serve(fake: Serve) -> AsyncIterator[HttpClient]:
        server = await listen(fake, 0)
        port = server.sockets[0].getsockname()[1]
        async with HttpClient(f"http://127.0.0.1:{port}", timeout_s=30) as http:
            yield http
        server.close()
        await server.wait_closed()

    return serve
