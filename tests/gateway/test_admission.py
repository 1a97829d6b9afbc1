"""Admission: all slots or none, in order, bounded; and each key within its own allowance."""

import asyncio
import contextlib
import random
from contextlib import AsyncExitStack

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.admission import Desk, Grant, RefusedError, Ticket
from gateway.allowance import Allowance
from gateway.config import Limits
from gateway.errors import InvalidRequestError, OverloadedError, RateLimitError


class Clock:
    """Time that tests turn forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def limits(capacity: int, *, queue: int = 8, wait_s: float = 5.0) -> Limits:
    """Limits with a capacity."""
    return Limits(
        max_best_of=1,
        max_candidates_per_request=1,
        max_concurrent_candidates=capacity,
        max_queue=queue,
        max_queue_wait_s=wait_s,
    )


def ticket(slots: int = 1, *, max_wait_s: float | None = None, retry: bool = False) -> Ticket:
    """A ticket of nobody."""
    return Ticket(slots=slots, max_wait_s=max_wait_s, retry=retry)


def keyed(slots: int = 1, key: str = "k1", **allowance: int) -> Ticket:
    """A ticket of a key."""
    return Ticket(slots=slots, key=key, allowance=Allowance(**allowance))


async def refusal(desk: Desk, asked: Ticket) -> RefusedError:
    """The error that a ticket gets."""
    with pytest.raises(RefusedError) as error:
        await desk.hold(asked).__aenter__()
    return error.value


async def use(desk: Desk, asked: Ticket, tokens: int = 0) -> Grant:
    """Hold and give back."""
    async with desk.hold(asked) as grant:
        grant.charge(tokens)
    return grant


async def waiting(desk: Desk, count: int) -> None:
    """Let tasks run until so many are in the queue."""
    for _ in range(100):
        if desk.waiting == count:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{desk.waiting} are waiting, not {count}")


# The slots.


async def test_slots_come_back_however_the_block_ends() -> None:
    desk = Desk(limits(4))

    async def fail() -> None:
        async with desk.hold(ticket(4)):
            assert desk.used == 4
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert desk.used == 0


async def test_a_large_request_is_not_starved_by_small_ones() -> None:
    desk = Desk(limits(4))
    order: list[str] = []

    async def take(name: str, count: int) -> None:
        async with desk.hold(ticket(count)):
            order.append(name)

    async with desk.hold(ticket(1)):
        large = asyncio.create_task(take("large", 4))
        await waiting(desk, 1)
        small = asyncio.create_task(take("small", 1))
        await waiting(desk, 2)
        assert order == []
    await asyncio.gather(large, small)
    assert order == ["large", "small"]


async def test_a_full_queue_and_a_long_wait_are_refused_with_a_time() -> None:
    desk = Desk(limits(1, queue=1, wait_s=0.02))
    async with desk.hold(ticket()):
        late = asyncio.create_task(refusal(desk, ticket()))
        await waiting(desk, 1)
        full = await refusal(desk, ticket())
        assert full.refusal.reason == "queue_full"
        assert (await late).refusal.reason == "queue_timeout"
    for error in (full, await late):
        assert isinstance(error, OverloadedError)
        assert error.status == 503
        assert error.headers() == {"retry-after": "1"}
    assert await use(desk, ticket())


async def test_a_ticket_waits_no_longer_than_its_client() -> None:
    desk = Desk(limits(1, wait_s=1000.0))
    async with desk.hold(ticket()):
        assert (await refusal(desk, ticket(max_wait_s=0.01))).refusal.reason == "queue_timeout"
        assert (await refusal(desk, ticket(max_wait_s=-1.0))).refusal.reason == "queue_timeout"
    desk.resize(limits(1, wait_s=0.01))
    async with desk.hold(ticket()):
        assert (await refusal(desk, ticket(max_wait_s=1000.0))).refusal.reason == "queue_timeout"
    assert await use(desk, ticket(max_wait_s=0.0)), "where there is room nobody waits"


@pytest.mark.parametrize(("queued", "shed"), [(2, False), (3, True)])
async def test_a_retry_gives_way_when_the_queue_is_more_than_half_full(queued: int, shed: bool) -> None:
    desk = Desk(limits(1, queue=4))
    async with desk.hold(ticket()):
        tasks = [asyncio.create_task(use(desk, ticket())) for _ in range(queued)]
        await waiting(desk, queued)
        retry = asyncio.create_task(use(desk, ticket(retry=True)))
        await asyncio.sleep(0)
        assert desk.waiting == queued + (not shed)
        if shed:
            with pytest.raises(OverloadedError) as error:
                await retry
            assert isinstance(error.value, RefusedError)
            assert error.value.refusal.reason == "retry_shed"
            retry = asyncio.create_task(use(desk, ticket()))  # the first try of another still gets in
            await waiting(desk, queued + 1)
    await asyncio.gather(*tasks, retry)
    assert desk.used == desk.waiting == 0


async def test_a_retry_is_served_where_there_is_room() -> None:
    assert await use(Desk(limits(1, queue=0)), ticket(retry=True))


async def test_who_leaves_the_queue_lets_the_next_one_in() -> None:
    desk = Desk(limits(4))
    entered = asyncio.Event()

    async def take(count: int) -> None:
        async with desk.hold(ticket(count)):
            entered.set()

    async with desk.hold(ticket(2)):
        large = asyncio.create_task(take(4))
        await waiting(desk, 1)
        small = asyncio.create_task(take(2))
        await waiting(desk, 2)
        large.cancel()
        await asyncio.wait_for(entered.wait(), 5)
    await small


async def test_the_wait_is_told() -> None:
    clock = Clock()
    desk = Desk(limits(1), clock)
    async with desk.hold(ticket()) as first:
        second = asyncio.create_task(use(desk, ticket()))
        await waiting(desk, 1)
        clock.now += 0.75
    assert first.queue_s == 0.0
    assert (await second).queue_s == 0.75


async def test_a_smaller_limit_lets_work_end_and_a_larger_one_lets_waiters_in() -> None:
    desk = Desk(limits(4))
    async with desk.hold(ticket(4)):
        desk.resize(limits(2))
        waiter = asyncio.create_task(use(desk, ticket(2)))
        await waiting(desk, 1)
        assert desk.used == 4
        desk.resize(limits(6))
        await waiter
    assert desk.used == 0


async def test_a_waiter_larger_than_the_new_limit_runs_alone() -> None:
    desk = Desk(limits(4))
    async with AsyncExitStack() as stack:
        async with desk.hold(ticket(1)):
            large = asyncio.create_task(stack.enter_async_context(desk.hold(ticket(4))))
            await waiting(desk, 1)
            desk.resize(limits(2))
        await large
        assert desk.used == 4
        small = asyncio.create_task(use(desk, ticket(1)))
        await waiting(desk, 1)
    await small


async def test_a_storm_of_cancellations_loses_no_slot() -> None:
    desk = Desk(limits(8, queue=1000))
    chance = random.Random(7)

    async def work() -> None:
        async with desk.hold(keyed(chance.randint(1, 8), max_concurrent_candidates=1000)):
            assert desk.used <= 8
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
    assert desk.used == desk.waiting == 0
    # The key has all of its concurrency back, too: another slot more would be too many.
    desk.resize(limits(1000))
    async with desk.hold(keyed(1000, max_concurrent_candidates=1000)):
        assert desk.used == 1000


# Keys.


async def test_requests_per_minute_on_both_sides_of_the_limit() -> None:
    clock = Clock()
    desk = Desk(limits(100), clock)
    asked = keyed(requests_per_minute=3)
    for remaining in (2, 1, 0):
        grant = await use(desk, asked)
        assert (grant.rate.limit_requests, grant.rate.remaining_requests) == (3, remaining)
    error = await refusal(desk, asked)
    assert isinstance(error, RateLimitError)
    assert (error.status, error.code, error.refusal.reason) == (429, "rate_limit_exceeded", "key_rate")
    assert error.headers() == {
        "retry-after": "20",
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }
    clock.now += 19.0
    assert (await refusal(desk, asked)).headers()["retry-after"] == "1"
    clock.now += 1.0
    await use(desk, asked)
    assert await refusal(desk, asked)
    assert await use(desk, keyed(key="k2", requests_per_minute=3)), "another key has its own"


async def test_refusals_cost_no_rate() -> None:
    """A client that comes back after Retry-After gets in, however often it was refused before."""
    clock = Clock()
    desk = Desk(limits(1, queue=0), clock)
    asked = keyed(requests_per_minute=2)
    async with desk.hold(ticket()):
        for _ in range(5):
            assert (await refusal(desk, asked)).refusal.reason == "queue_full"
    assert [(await use(desk, asked)).rate.remaining_requests for _ in range(2)] == [1, 0]
    for _ in range(100):
        assert (await refusal(desk, asked)).refusal.reason == "key_rate"
    clock.now += 30.0
    assert (await use(desk, asked)).rate.remaining_requests == 0


async def test_who_leaves_the_queue_gets_rate_and_concurrency_back() -> None:
    desk = Desk(limits(1), Clock())
    asked = keyed(requests_per_minute=1, max_concurrent_candidates=1)
    async with desk.hold(ticket()):
        leaver = asyncio.create_task(use(desk, asked))
        await waiting(desk, 1)
        leaver.cancel()
        await asyncio.wait({leaver})
    assert (await use(desk, asked)).rate.remaining_requests == 0


async def test_concurrency_counts_candidates_that_run_or_wait() -> None:
    desk = Desk(limits(4))
    asked = keyed(2, max_concurrent_candidates=4)
    async with desk.hold(ticket(2)), desk.hold(asked):
        waiter = asyncio.create_task(use(desk, asked))
        await waiting(desk, 1)
        error = await refusal(desk, keyed(1, max_concurrent_candidates=4))
        assert isinstance(error, RateLimitError)
        assert (error.status, error.code) == (429, "rate_limit_exceeded")
        assert error.refusal.reason == "key_concurrency"
        assert error.headers() == {"retry-after": "1"}
    await waiter
    assert await use(desk, keyed(4, max_concurrent_candidates=4))


async def test_more_than_a_key_could_ever_have_is_a_400() -> None:
    error = await refusal(Desk(limits(64)), keyed(5, max_concurrent_candidates=4))
    assert isinstance(error, InvalidRequestError)
    assert (error.status, error.code, error.headers()) == (400, "too_many_candidates", {})


async def test_tokens_are_charged_at_the_end_and_come_back_over_the_day() -> None:
    clock = Clock()
    desk = Desk(limits(100), clock)
    asked = keyed(tokens_per_day=864)  # one each 100 s
    async with desk.hold(asked) as first, desk.hold(asked) as second:
        first.charge(400)
        first.charge(400)
        second.charge(164)
        assert first.rate.remaining_tokens == second.rate.remaining_tokens == 864, "nothing is charged yet"
    error = await refusal(desk, asked)  # 100 tokens below zero: 101 must come back
    assert isinstance(error, RateLimitError)
    assert (error.status, error.code, error.refusal.reason) == (429, "insufficient_quota", "key_tokens")
    assert error.headers() == {
        "retry-after": "10100",
        "x-ratelimit-limit-tokens": "864",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "26h46m40s",
    }
    clock.now += 10_099.0
    assert (await refusal(desk, asked)).headers()["retry-after"] == "1"
    clock.now += 1.0
    assert (await use(desk, asked)).rate.remaining_tokens == 1


async def test_tokens_are_charged_when_the_holder_fails() -> None:
    desk = Desk(limits(1), Clock())
    asked = keyed(tokens_per_day=10)

    async def fail() -> None:
        async with desk.hold(asked) as grant:
            grant.charge(10)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert (await refusal(desk, asked)).refusal.reason == "key_tokens"


async def test_a_changed_allowance_counts_at_once() -> None:
    desk = Desk(limits(100), Clock())
    for _ in range(2):
        await use(desk, keyed(requests_per_minute=2))
    assert await refusal(desk, keyed(requests_per_minute=2))
    assert await use(desk, keyed(key="k1")), "the limit is gone"
    # All of the minute's requests are used, be they 2 or 200.
    assert await refusal(desk, keyed(requests_per_minute=200))


async def test_idle_keys_are_forgotten_and_busy_ones_are_not() -> None:
    clock = Clock()
    desk = Desk(limits(100_000), clock)
    async with desk.hold(keyed(key="busy", max_concurrent_candidates=1)):
        for number in range(5000):
            await use(desk, keyed(key=f"k{number}", requests_per_minute=60))
            clock.now += 0.1  # each is like new after 1 s: ten are not
        assert desk.accounts < 200
        assert await refusal(desk, keyed(key="busy", max_concurrent_candidates=1))


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.floats(0, 40), st.integers(1, 5), st.booleans(), st.integers(0, 3)), max_size=40
    ),
    rate=st.integers(1, 10),
)
@example(steps=[(0.0, 1, False, 2), (0.0, 1, True, 0)], rate=1)  # the tokens are back before the rate is
async def test_retry_after_is_neither_too_short_nor_a_second_too_long(
    steps: list[tuple[float, int, bool, int]], rate: int
) -> None:
    clock = Clock()
    desk = Desk(limits(100), clock)
    asked = keyed(requests_per_minute=rate, tokens_per_day=86_400)
    for pause, slots, obedient, tokens in steps:
        clock.now += pause
        try:
            await use(desk, keyed(slots, requests_per_minute=rate, tokens_per_day=86_400), tokens * 43_200)
        except RefusedError as error:
            wait = error.refusal.retry_after
            assert wait is not None
            assert wait >= 1
            if obedient:
                clock.now += wait - 1.001
                assert await refusal(desk, asked)
                clock.now += 1.001
                assert await use(desk, asked)
