"""Candidate slots: how much is generated at once, and who waits.

A request takes all of its slots or none (best_of times its prompts). Who finds no room waits in order of
arrival, so that small requests cannot starve a large one; the queue and the wait are bounded, and beyond them
the answer is a 503 with a Retry-After, at once.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.config import Limits
from gateway.errors import OverloadedError
from gateway.metrics import Metrics


class CandidateSlots:
    """A first-come, first-served semaphore with weights."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._free = limits.max_concurrent_candidates
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, count: int) -> AsyncIterator[None]:
        """Hold `count` slots; count is at most the limit per request.

        Raises:
            OverloadedError: the queue is full, or the wait took too long.
        """
        if self._queue or count > self._free:
            await self._wait(count)
        else:
            self._take(count)
        try:
            yield
        finally:
            self._give_back(count)

    async def _wait(self, count: int) -> None:
        if len(self._queue) >= self._limits.max_queue:
            raise self._refusal("queue_full")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (count, turn)
        self._queue.append(entry)
        self._metrics.waiting.set(len(self._queue))
        try:
            async with asyncio.timeout(self._limits.max_queue_wait_s):
                await turn
        except BaseException as error:
            self._leave(entry)
            if isinstance(error, TimeoutError):
                raise self._refusal("queue_timeout") from None
            raise

    def _leave(self, entry: tuple[int, asyncio.Future[None]]) -> None:
        """A waiter gives up; its turn may have come at the very same moment."""
        count, turn = entry
        if turn.done() and not turn.cancelled():
            self._give_back(count)
        else:
            turn.cancel()
            self._admit()

    def _admit(self) -> None:
        """Let in whom there is room for, in order; who was cancelled may still stand in the queue."""
        self._queue = deque(entry for entry in self._queue if not entry[1].done())
        while self._queue and self._queue[0][0] <= self._free:
            count, turn = self._queue.popleft()
            self._take(count)
            turn.set_result(None)
        self._metrics.waiting.set(len(self._queue))

    def _take(self, count: int) -> None:
        self._free -= count
        self._metrics.slots.inc(count)

    def _give_back(self, count: int) -> None:
        self._free += count
        self._metrics.slots.dec(count)
        self._admit()

    def _refusal(self, reason: str) -> OverloadedError:
        self._metrics.rejected.labels(reason).inc()
        return OverloadedError("The gateway is at its limit. Come back after the time in Retry-After.")
