"""Admission's instruments: what is held, who waits, who was refused and why."""

import asyncio

import pytest

from gateway.admission import Desk, RefusedError, Ticket
from gateway.allowance import Allowance
from gateway.config import Limits
from gateway.metered import Metered
from gateway.metrics import Metrics


class Gauges:
    """A metered desk of two slots and one place in the queue."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.desk = Desk(self.limits(2))
        self.admission = Metered(self.desk, self.limits(2), self.metrics)

    @staticmethod
    def limits(capacity: int) -> Limits:
        """Limits with a capacity."""
        return Limits(
            max_best_of=1, max_candidates_per_request=1, max_concurrent_candidates=capacity, max_queue=1
        )

    def value(self, name: str, **labels: str) -> float:
        """A metric's value now."""
        return self.metrics.registry.get_sample_value(f"bonsai_gateway_{name}", labels) or 0.0

    @property
    def state(self) -> tuple[float, float, float]:
        """Slots in use, requests that wait, requests granted."""
        return (
            self.value("candidate_slots_in_use"),
            self.value("queued_requests"),
            self.value("queue_seconds_count"),
        )


async def test_slots_and_queue_are_shown_as_they_are() -> None:
    gauges = Gauges()

    async def use() -> None:
        async with gauges.admission.hold(Ticket(slots=1)):
            assert gauges.value("candidate_slots_in_use") == 1

    async with gauges.admission.hold(Ticket(slots=2)) as grant:
        assert gauges.state == (2, 0, 1)
        waiter = asyncio.create_task(use())
        await asyncio.sleep(0)
        assert gauges.state == (2, 1, 1)
        assert grant.queue_s == 0.0
    await waiter
    assert gauges.state == (0, 0, 2)


async def test_who_leaves_while_waiting_was_neither_granted_nor_refused() -> None:
    gauges = Gauges()
    async with gauges.admission.hold(Ticket(slots=2)):
        waiter = asyncio.create_task(gauges.admission.hold(Ticket(slots=1)).__aenter__())
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.wait({waiter})
    assert gauges.state == (0, 0, 1)
    reasons = ("queue_full", "queue_timeout", "retry_shed")
    assert [gauges.value("rejected_total", reason=reason) for reason in reasons] == [0, 0, 0]


@pytest.mark.parametrize(
    ("reason", "ticket"),
    [
        ("queue_full", Ticket(slots=3)),
        ("key_rate", Ticket(slots=1, key="k", allowance=Allowance(requests_per_minute=1))),
        ("key_tokens", Ticket(slots=1, key="k", allowance=Allowance(tokens_per_day=1))),
        ("key_concurrency", Ticket(slots=1, key="k", allowance=Allowance(max_concurrent_candidates=1))),
        ("key_too_large", Ticket(slots=2, key="k", allowance=Allowance(max_concurrent_candidates=1))),
    ],
)
async def test_refusals_are_counted_by_reason(reason: str, ticket: Ticket) -> None:
    gauges = Gauges()
    used_up = Allowance(requests_per_minute=1, tokens_per_day=1)
    async with gauges.admission.hold(Ticket(slots=1, key="k", allowance=used_up)) as grant:
        grant.charge(1)
    async with gauges.admission.hold(Ticket(slots=1, key="k", allowance=Allowance())):
        waiter = asyncio.create_task(gauges.admission.hold(Ticket(slots=2)).__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(RefusedError):
            await gauges.admission.hold(ticket).__aenter__()
        waiter.cancel()
        await asyncio.wait({waiter})
    assert gauges.value("rejected_total", reason=reason) == 1
    assert gauges.state == (0, 0, 2)


async def test_a_failure_of_the_holder_gives_everything_back() -> None:
    gauges = Gauges()

    async def fail() -> None:
        async with gauges.admission.hold(Ticket(slots=2)):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert gauges.state == (0, 0, 1)


async def test_new_limits_reach_the_desk() -> None:
    gauges = Gauges()
    assert gauges.value("candidate_slots") == 2
    gauges.admission.resize(gauges.limits(5))
    assert gauges.value("candidate_slots") == 5
    async with gauges.admission.hold(Ticket(slots=2)), gauges.admission.hold(Ticket(slots=3)):
        assert gauges.desk.used == 5
