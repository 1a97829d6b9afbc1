"""Candidate slots: all or none, in order, bounded."""

import asyncio
import contextlib
import random

import pytest

from gateway.admission import CandidateSlots
from gateway.config import Limits
from gateway.errors import OverloadedError
from gateway.metrics import Metrics


def slots(capacity: int, *, queue: int = 8, wait_s: float = 5.0) -> tuple[CandidateSlots, Metrics]:
    """Slots and their instruments."""
    metrics = Metrics()
    limits = Limits(
        max_best_of=capacity,
        max_candidates_per_request=capacity,
        max_concurrent_candidates=capacity,
        max_queue=queue,
        max_queue_wait_s=wait_s,
    )
    return CandidateSlots(limits, metrics), metrics


def in_use(metrics: Metrics) -> float | None:
    """The gauge of taken slots."""
    return metrics.registry.get_sample_value("bonsai_gateway_candidate_slots_in_use")


async def test_slots_come_back_however_the_block_ends() -> None:
    held, metrics = slots(4)

    async def fail() -> None:
        async with held.hold(4):
            assert in_use(metrics) == 4
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert in_use(metrics) == 0


async def test_a_large_request_is_not_starved_by_small_ones() -> None:
    held, _ = slots(4)
    order: list[str] = []

    async def take(name: str, count: int) -> None:
        async with held.hold(count):
            order.append(name)

    async with held.hold(1):
        large = asyncio.create_task(take("large", 4))
        await asyncio.sleep(0)
        small = asyncio.create_task(take("small", 1))
        await asyncio.sleep(0)
        assert order == []
    await asyncio.gather(large, small)
    assert order == ["large", "small"]


async def test_a_full_queue_and_a_long_wait_are_refused_with_a_time() -> None:
    held, metrics = slots(1, queue=1, wait_s=0.02)
    async with held.hold(1):
        waiting = asyncio.create_task(held.hold(1).__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError) as full:
            await held.hold(1).__aenter__()
        with pytest.raises(OverloadedError) as late:
            await waiting
    assert full.value.headers()["retry-after"] == late.value.headers()["retry-after"] == "1"
    for reason in ("queue_full", "queue_timeout"):
        assert metrics.registry.get_sample_value("bonsai_gateway_rejected_total", {"reason": reason}) == 1
    async with held.hold(1):
        assert in_use(metrics) == 1


async def test_who_leaves_the_queue_lets_the_next_one_in() -> None:
    held, _ = slots(4)
    entered = asyncio.Event()

    async def take(count: int) -> None:
        async with held.hold(count):
            entered.set()

    async with held.hold(2):
        large = asyncio.create_task(take(4))
        await asyncio.sleep(0)
        small = asyncio.create_task(take(2))
        await asyncio.sleep(0)
        large.cancel()
        await asyncio.wait_for(entered.wait(), 5)
    await small


async def test_a_storm_of_cancellations_loses_no_slot() -> None:
    held, metrics = slots(8, queue=1000)
    chance = random.Random(7)

    async def work() -> None:
        async with held.hold(chance.randint(1, 8)):
            for _ in range(chance.randint(0, 3)):
                await asyncio.sleep(0)

    for _ in range(60):
        tasks = [asyncio.create_task(work()) for _ in range(20)]
        for _ in range(chance.randint(0, 6)):
            await asyncio.sleep(0)
        for task in chance.sample(tasks, 12):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
    assert in_use(metrics) == 0
    assert metrics.registry.get_sample_value("bonsai_gateway_queued_requests") == 0
    async with held.hold(8):
        assert in_use(metrics) == 8
