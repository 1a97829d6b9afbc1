"""Admission, counted. The instruments stand on the side that asks, so that where several workers share one
desk each counts its own requests and their sum is right."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from gateway.admission import Admission, Grant, RefusedError, Ticket
from gateway.config import Limits
from gateway.metrics import Metrics


class Metered:
    """An `Admission` around another one."""

    def __init__(self, inner: Admission, metrics: Metrics) -> None:
        self._inner = inner
        self._metrics = metrics

    @asynccontextmanager
    async def hold(self, ticket: Ticket) -> AsyncIterator[Grant]:
        """See `Admission`."""
        async with AsyncExitStack() as stack:
            grant = await self._ask(ticket, stack)
            self._metrics.queue_seconds.observe(grant.queue_s)
            self._metrics.slots.inc(ticket.slots)
            stack.callback(self._metrics.slots.dec, ticket.slots)
            yield grant

    async def _ask(self, ticket: Ticket, stack: AsyncExitStack) -> Grant:
        with self._metrics.waiting.track_inprogress():
            try:
                return await stack.enter_async_context(self._inner.hold(ticket))
            except RefusedError as error:
                self._metrics.rejected.labels(error.refusal.reason).inc()
                raise

    def resize(self, limits: Limits) -> None:
        """See `Admission`."""
        self._inner.resize(limits)
