"""Admission, counted. The instruments stand on the side that asks, so that where several workers share one
desk each counts its own requests and their sum is right."""

from contextlib import AbstractAsyncContextManager

from gateway.admission import Admission, Grant, RefusedError, Ticket
from gateway.config import Limits
from gateway.metrics import Metrics


class Metered:
    """An `Admission` around another one."""

    def __init__(self, inner: Admission, limits: Limits, metrics: Metrics) -> None:
        self._inner = inner
        self._metrics = metrics
        metrics.slot_limit.set(limits.max_concurrent_candidates)

    def hold(self, ticket: Ticket) -> "MeteredHold":
        """See `Admission`."""
        return MeteredHold(self._inner.hold(ticket), ticket.slots, self._metrics)

    def resize(self, limits: Limits) -> None:
        """See `Admission`."""
        self._inner.resize(limits)
        self._metrics.slot_limit.set(limits.max_concurrent_candidates)


class MeteredHold:
    """A hold, counted. A class for the reason that `admission.Hold` is one."""

    __slots__ = ("_hold", "_metrics", "_slots")

    def __init__(self, hold: AbstractAsyncContextManager[Grant], slots: int, metrics: Metrics) -> None:
        self._hold = hold
        self._slots = slots
        self._metrics = metrics

    async def __aenter__(self) -> Grant:
        self._metrics.waiting.inc()
        try:
            grant = await self._hold.__aenter__()
        except RefusedError as error:
            self._metrics.rejected.labels(error.refusal.reason).inc()
            raise
        finally:
            self._metrics.waiting.dec()
        self._metrics.queue_seconds.observe(grant.queue_s)
        self._metrics.slots.inc(self._slots)
        return grant

    async def __aexit__(self, *_: object) -> None:
        self._metrics.slots.dec(self._slots)
        await self._hold.__aexit__(None, None, None)
