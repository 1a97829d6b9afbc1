"""Limits that hold across workers: one desk, and workers that ask it over socket pairs."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest

from gateway.admission import AllowanceError, Desk, QuotaError, SaturatedError, Ticket
from gateway.allowance import Allowance
from gateway.config import Limits
from gateway.desk_server import Counter
from gateway.desk_wire import Ask, Channel, Done, FromWorker, Granted, Refused, ToWorker
from gateway.errors import StoppingError
from gateway.remote_desk import RemoteDesk

LIMITS = Limits(max_best_of=4, max_candidates_per_request=4, max_concurrent_candidates=4, max_queue=2)


@dataclass
class Pair:
    """A worker's desk, and both ends of the way to the supervisor's."""

    desk: RemoteDesk
    worker: Channel[ToWorker]
    supervisor: Channel[FromWorker]


@asynccontextmanager
async def connected(desk: Desk) -> AsyncGenerator[Pair, None]:
    """A worker at this desk."""
    ours, theirs = socket.socketpair()
    counter: Counter

    def to_supervisor(message: FromWorker) -> None:
        match message:
            case Ask():
                counter.ask(message)
            case Done():
                counter.done(message)

    def to_worker(message: ToWorker) -> None:
        assert isinstance(message, Granted | Refused)
        remote.hear(message)

    supervisor: Channel[FromWorker] = Channel(FromWorker, to_supervisor)
    worker: Channel[ToWorker] = Channel(ToWorker, to_worker)
    counter = Counter(desk, supervisor.send)
    remote = RemoteDesk(worker.send)
    await supervisor.connect(ours)
    await worker.connect(theirs)
    supervisor_end = asyncio.create_task(close_when_lost(supervisor, counter))
    try:
        yield Pair(remote, worker, supervisor)
    finally:
        worker.close()
        await supervisor_end


async def close_when_lost(channel: Channel[FromWorker], counter: Counter) -> None:
    await channel.lost.wait()
    counter.close()


async def until(holds: Callable[[], bool]) -> None:
    """Let the event loop run until this is true: what is said takes a few turns to arrive."""
    async with asyncio.timeout(10):
        await anext(turn async for turn in turns() if holds())


async def turns() -> AsyncGenerator[None, None]:
    """The event loop's."""
    while True:
        yield
        await asyncio.sleep(0)


async def test_one_limit_for_all_workers() -> None:
    desk = Desk(LIMITS)
    async with connected(desk) as one, connected(desk) as other, AsyncExitStack() as held:
        await held.enter_async_context(one.desk.hold(Ticket(slots=3)))
        await held.enter_async_context(other.desk.hold(Ticket(slots=1)))
        assert desk.used == 4
        waiting = asyncio.create_task(held_once(other.desk, Ticket(slots=2)))
        await until(lambda: desk.waiting == 1)
        await held.aclose()
        assert await waiting > 0.0
        await until(lambda: desk.used == 0)


async def held_once(desk: RemoteDesk, ticket: Ticket) -> float:
    """How long it waited."""
    async with desk.hold(ticket) as grant:
        return grant.queue_s


async def test_a_refusal_says_over_there_what_it_says_here() -> None:
    allowance = Allowance(requests_per_minute=1)
    desk = Desk(LIMITS, clock=lambda: 0.0)
    ticket = Ticket(slots=1, key="a", allowance=allowance)
    async with connected(desk) as worker:
        async with worker.desk.hold(ticket) as grant:
            assert grant.rate.headers()["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(AllowanceError) as refused:
            await held_once(worker.desk, ticket)
        with pytest.raises(AllowanceError) as here:
            async with desk.hold(ticket):
                pass
    assert refused.value.status == 429
    assert refused.value.retry_after == 60
    assert refused.value.body() == here.value.body()
    assert refused.value.headers() == here.value.headers()


async def test_tokens_are_charged_to_a_key_wherever_it_asks() -> None:
    desk = Desk(LIMITS)
    ticket = Ticket(slots=1, key="a", allowance=Allowance(tokens_per_day=100))
    async with connected(desk) as one, connected(desk) as other:
        async with one.desk.hold(ticket) as grant:
            grant.charge(100)
        await until(lambda: desk.used == 0)
        with pytest.raises(QuotaError):
            await held_once(other.desk, ticket)


async def test_the_queue_is_bounded_for_all_together() -> None:
    desk = Desk(LIMITS)
    async with connected(desk) as one, connected(desk) as other, AsyncExitStack() as held:
        await held.enter_async_context(one.desk.hold(Ticket(slots=4)))
        waiting = [asyncio.create_task(held_once(worker.desk, Ticket(slots=1))) for worker in (one, other)]
        await until(lambda: desk.waiting == 2)
        for worker in (one, other):
            with pytest.raises(SaturatedError):
                await held_once(worker.desk, Ticket(slots=1))
        await held.aclose()
        await asyncio.gather(*waiting)


async def test_who_hangs_up_while_it_waits_leaves_the_queue() -> None:
    desk = Desk(LIMITS)
    async with connected(desk) as worker, AsyncExitStack() as held:
        await held.enter_async_context(worker.desk.hold(Ticket(slots=4)))
        waiting = asyncio.create_task(held_once(worker.desk, Ticket(slots=1)))
        await until(lambda: desk.waiting == 1)
        waiting.cancel()
        await until(lambda: desk.waiting == 0)
        await held.aclose()
        await until(lambda: desk.used == 0)


async def test_who_hangs_up_at_once_holds_nothing() -> None:
    """The question and its withdrawal go out together."""
    desk = Desk(LIMITS)
    async with connected(desk) as worker:
        asking = asyncio.create_task(held_once(worker.desk, Ticket(slots=4)))
        await asyncio.sleep(0)
        asking.cancel()
        assert await held_once(worker.desk, Ticket(slots=4)) >= 0.0
        await until(lambda: desk.used == 0)


@pytest.mark.parametrize("later", range(12))
async def test_a_hang_up_at_any_moment_leaves_nothing_behind(later: int) -> None:
    """The grant may be on its way while the withdrawal goes the other."""
    desk = Desk(LIMITS)
    async with connected(desk) as worker:
        asking = asyncio.create_task(hold_for_ever(worker.desk, Ticket(slots=4)))
        for _ in range(later):
            await asyncio.sleep(0)
        asking.cancel()
        assert await held_once(worker.desk, Ticket(slots=4)) >= 0.0
        await until(lambda: desk.used == 0)


async def hold_for_ever(desk: RemoteDesk, ticket: Ticket) -> None:
    """Until cancelled."""
    async with desk.hold(ticket):
        await asyncio.Event().wait()


async def test_what_a_dead_worker_held_and_waited_for_is_free_again() -> None:
    desk = Desk(LIMITS)
    async with connected(desk) as other:
        async with connected(desk) as dying:
            holding = asyncio.create_task(hold_for_ever(dying.desk, Ticket(slots=3)))
            await until(lambda: desk.used == 3)
            waiting = asyncio.create_task(hold_for_ever(dying.desk, Ticket(slots=2)))
            await until(lambda: desk.waiting == 1)
        await until(lambda: desk.used == 0 and desk.waiting == 0)
        assert await held_once(other.desk, Ticket(slots=4)) == 0.0
        assert not holding.done()  # nobody asked it
        for task in (holding, waiting):
            task.cancel()


async def test_without_a_supervisor_nobody_is_let_in() -> None:
    desk = Desk(LIMITS)
    async with connected(desk) as worker, AsyncExitStack() as held:
        await held.enter_async_context(worker.desk.hold(Ticket(slots=4)))
        waiting = asyncio.create_task(held_once(worker.desk, Ticket(slots=1)))
        await until(lambda: desk.waiting == 1)
        worker.desk.close()
        with pytest.raises(StoppingError):
            await waiting
        with pytest.raises(StoppingError):
            await held_once(worker.desk, Ticket(slots=1))


async def test_a_thousand_at_once_keep_to_the_limit() -> None:
    limits = Limits(max_best_of=4, max_candidates_per_request=4, max_concurrent_candidates=8, max_queue=1000)
    desk = Desk(limits)
    most = 0

    async def hold(worker: Pair, slots: int) -> None:
        nonlocal most
        async with worker.desk.hold(Ticket(slots=slots, max_wait_s=60.0)):
            most = max(most, desk.used)
            await asyncio.sleep(0)

    async with connected(desk) as one, connected(desk) as other:
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            for number in range(500):
                tasks.create_task(hold(one, 1 + number % 4))
                tasks.create_task(hold(other, 1 + number % 3))
        await until(lambda: desk.used == 0)
    assert most <= 8


async def test_a_request_may_ask_before_the_word_comes_that_the_one_before_it_ended() -> None:
    answers: asyncio.Queue[Granted | Refused] = asyncio.Queue()
    counter = Counter(Desk(LIMITS), answers.put_nowait)
    ticket = Ticket(slots=2, key="a", allowance=Allowance(max_concurrent_candidates=3))
    counter.ask(Ask(1, ticket))
    assert isinstance(await answers.get(), Granted)
    counter.ask(Ask(2, ticket))
    await asyncio.sleep(0)  # it has been judged
    counter.done(Done(1, 0))
    assert isinstance(await answers.get(), Granted)
    counter.ask(Ask(3, ticket))
    refused = await answers.get()
    assert isinstance(refused, Refused)
    assert (refused.id, refused.refusal.reason) == (3, "key_concurrency")
    counter.close()


async def test_who_goes_while_word_may_still_come_gets_nothing() -> None:
    answers: asyncio.Queue[Granted | Refused] = asyncio.Queue()
    desk = Desk(LIMITS)
    counter = Counter(desk, answers.put_nowait)
    ticket = Ticket(slots=2, key="a", allowance=Allowance(max_concurrent_candidates=3))
    counter.ask(Ask(1, ticket))
    assert isinstance(await answers.get(), Granted)
    counter.ask(Ask(2, ticket))
    await asyncio.sleep(0)
    counter.done(Done(2, 0))
    counter.done(Done(1, 0))
    await until(lambda: desk.used == 0)
    counter.ask(Ask(3, ticket))
    assert (await answers.get()).id == 3
    counter.close()
