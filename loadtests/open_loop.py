"""Open-loop load: requests start by the clock, whether or not earlier ones have been answered.

A closed loop slows down with the server and so hides its queue (coordinated omission). Here every latency
counts from the scheduled instant, and the generator's own lag behind its schedule is measured beside it:
where that is large, the generator was the bottleneck and the run says little.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from loadtests.figures import percentile
from loadtests.http_client import now


@dataclass
class Answer:
    """What one request brought: the first and the last instant of its answer, or what went wrong."""

    first_at: float | None = None
    """The first content of a stream."""
    ended_at: float = 0.0
    """0: when the sender returns."""
    tokens: int = 0
    status: int = 0
    """0 where none came."""
    error: str | None = None
    """None, or a short name: a status, a broken stream, a time-out."""


@dataclass
class Sample:
    """One scheduled request; all instants by `now`, in seconds."""

    scheduled_at: float
    started_at: float
    answer: Answer = field(default_factory=Answer)

    @property
    def lag_s(self) -> float:
        return self.started_at - self.scheduled_at

    @property
    def latency_s(self) -> float:
        return self.answer.ended_at - self.scheduled_at


Send = Callable[[int], Awaitable[Answer]]


async def run(
    send: Send, *, rate: float, seconds: float, then: tuple[float, float] | None = None
) -> list[Sample]:
    """Start `rate` requests per second for `seconds`, `then` at another rate for another time without a
    pause; wait for all answers, return them in order."""
    begin, tasks = now(), []
    for index, after_s in enumerate(schedule(rate, seconds, then)):
        scheduled_at = begin + after_s
        await asyncio.sleep(max(0.0, scheduled_at - now()))
        tasks.append(asyncio.create_task(_one(send, index, scheduled_at)))
    return await asyncio.gather(*tasks)


def schedule(rate: float, seconds: float, then: tuple[float, float] | None = None) -> list[float]:
    """Seconds from the beginning at which requests start; at least one does."""
    first = [index / rate for index in range(max(1, round(rate * seconds)))]
    return first + [seconds + after_s for after_s in schedule(*then)] if then else first


def lag_p99(samples: Sequence[Sample]) -> float:
    """The generator's own lag behind its schedule, seconds."""
    return percentile([sample.lag_s for sample in samples], 0.99)


async def _one(send: Send, index: int, scheduled_at: float) -> Sample:
    sample = Sample(scheduled_at, now())
    sample.answer = await send(index)
    sample.answer.ended_at = sample.answer.ended_at or now()
    return sample
