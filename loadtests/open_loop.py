"""Open-loop load: requests start by the clock, whether or not earlier ones have been answered.

A closed loop slows down with the server and so hides its queue (coordinated omission). Here every latency
counts from the scheduled instant, and the generator's own lag behind its schedule is measured beside it:
where that is large, the generator was the bottleneck and the run says little.
"""

import asyncio
import gc
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from loadtests.alignment import Alignment
from loadtests.figures import percentile
from loadtests.http_client import now

GRACE_S = 3.0
"""How long answers are waited for once a run has been told to stop."""
ALLOCATIONS = 100_000
NOT_SENT = "not sent: too many in flight"
INTERRUPTED = "not waited for"


@dataclass(slots=True)
class Answer:
    """What one request brought: the first and the last instant of its answer, or what went wrong."""

    first_at: float | None = None
    """The first content of a stream."""
    ended_at: float = 0.0
    """0: when the sender returns."""
    gaps_s: list[float] = field(default_factory=list)
    """Between a stream's chunks with content."""
    tokens: int = 0
    text: str = ""
    """Of the first choice."""
    alignment: Alignment | None = None
    """What the gateway says of its choice."""
    scores: list[float] = field(default_factory=list)
    """Of a reward server."""
    cancelled: bool = False
    """The client hung up, as it was meant to."""
    status: int = 0
    """0 where none came."""
    error: str | None = None
    """None, or a short name: a status, a broken stream, a time-out."""


@dataclass(slots=True)
class Sample:
    """One scheduled request; all instants by `now`, in seconds."""

    scheduled_at: float
    started_at: float
    answer: Answer = field(default_factory=Answer)
    best_of: int = 1
    """As asked for."""

    @property
    def lag_s(self) -> float:
        return self.started_at - self.scheduled_at

    @property
    def latency_s(self) -> float:
        return self.answer.ended_at - self.scheduled_at


Send = Callable[[int], Coroutine[Any, Any, Answer]]


async def run(
    send: Send, *, rate: float, seconds: float, then: tuple[float, float] | None = None
) -> list[Sample]:
    """Start `rate` requests per second for `seconds`, `then` at another rate for another time without a
    pause; wait for all answers, return them in order."""
    return await drive(send, schedule(rate, seconds, then))


async def drive(
    send: Send,
    instants: Sequence[float],
    *,
    max_in_flight: int = sys.maxsize,
    stop: asyncio.Event | None = None,
) -> list[Sample]:
    """Start a request at each instant, in seconds from now; wait for all answers, return them in order.

    A request that finds `max_in_flight` others is not sent, which is an error of its own: waiting would make
    this a closed loop. After `stop` nothing is started, and what is under way has GRACE_S to end. What a
    call of `send` does before its coroutine runs is done ahead of the instant.
    """
    stop = stop or asyncio.Event()
    begin, samples = now(), list[Sample]()
    under_way: set[asyncio.Task[None]] = set()
    for index, after_s in enumerate(instants):
        work = send(index)
        if not await _reached(begin + after_s, stop):
            work.close()
            break
        sample = Sample(begin + after_s, now())
        samples.append(sample)
        if len(under_way) >= max_in_flight:
            work.close()
            sample.answer = Answer(error=NOT_SENT, ended_at=now())
            continue
        task = asyncio.create_task(_one(work, sample))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await _settle(list(under_way), stop)
    return samples


def schedule(rate: float, seconds: float, then: tuple[float, float] | None = None) -> list[float]:
    """Seconds from the beginning at which requests start; at least one does."""
    first = [index / rate for index in range(max(1, round(rate * seconds)))]
    return first + [seconds + after_s for after_s in schedule(*then)] if then else first


def bursts(rate: float, seconds: float, size: int) -> list[float]:
    """The same number of requests as `schedule`, `size` of them at a time."""
    return [index // size * size / rate for index in range(len(schedule(rate, seconds)))]


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """As many as `schedule`, at random instants: each independent of all others, as users are."""
    random = Random(seed)
    return sorted(random.uniform(0, seconds) for _ in schedule(rate, seconds))


def lag(samples: Sequence[Sample], share: float) -> float:
    """The generator's own lag behind its schedule, seconds: what this share of the requests stays within."""
    return percentile([sample.lag_s for sample in samples], share)


def lag_p99(samples: Sequence[Sample]) -> float:
    """Of all but the worst in a hundred."""
    return lag(samples, 0.99)


@contextmanager
def few_collections() -> Iterator[None]:
    """What was there before is not walked by the garbage collector, and the rest seldom: its pauses would
    be lag."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def _reached(instant: float, stop: asyncio.Event) -> bool:
    """Wait for an instant; False when the run is to stop before it."""
    await asyncio.sleep(0)
    while (left := instant - now()) > 0 and not stop.is_set():  # a timer may fire early, by its resolution
        with suppress(TimeoutError):
            async with asyncio.timeout(left):
                await stop.wait()
    return not stop.is_set()


async def _one(work: Coroutine[Any, Any, Answer], sample: Sample) -> None:
    sample.started_at = now()
    try:
        sample.answer = await work
    except asyncio.CancelledError:
        sample.answer = Answer(error=INTERRUPTED)
    sample.answer.ended_at = sample.answer.ended_at or now()


async def _settle(tasks: Sequence[asyncio.Task[None]], stop: asyncio.Event) -> None:
    """Until all have ended; once told to stop, for GRACE_S at most."""
    stopping: asyncio.Future[Any] = asyncio.create_task(stop.wait())
    everything: asyncio.Future[Any] = asyncio.gather(*tasks)
    await asyncio.wait({everything, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not everything.done():
        await asyncio.wait(tasks, timeout=GRACE_S)
        for task in tasks:
            task.cancel()
    stopping.cancel()
    await everything
