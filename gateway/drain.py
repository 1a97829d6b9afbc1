"""How the gateway leaves: unready from the first signal on, and no request that is cut off without a word.

Answers then carry `Connection: close`. `gateway.server` stops listening and waits for the requests under way;
those that outlast its patience it cancels. They are given time to tell their clients: a 503 `stopping`, or an
error event on an open stream.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

FAREWELL_S = 1.0


class Drain:
    """The requests under way, and whether the gateway is leaving."""

    def __init__(self) -> None:
        self.leaving = False
        self._under_way = 0
        self._at_rest = asyncio.Event()
        self._at_rest.set()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around a request."""
        self._under_way += 1
        self._at_rest.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if self._under_way == 0:
                self._at_rest.set()

    async def at_rest(self) -> None:
        """Wait until no request is under way, at most for 1 s."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await self._at_rest.wait()
