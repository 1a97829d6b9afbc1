"""Open-loop load: requests start by the clock, whether or not earlier ones have been answered.

A closed loop slows down with the server and so hides its queue (coordinated omission). Here every latency
counts from the scheduled instant, and the generator's own lag behind its schedule is measured beside it:
where that is large, the generator was the bottleneck and the run says little.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import perf_counter

MAX_LAG_S = 0.005
"""Above this at the 99th percentile a run is marked noisy."""


def now() -> float:
    """Seconds. Not the event loop's clock, which under uvloop counts in whole milliseconds."""
    return perf_counter()


@dataclass
class Answer:
    """What one request brought: the first and the last instant of its answer, or what went wrong."""

    first_at: float | None = None
    """The first content of a stream."""
    ended_at: float = 0.0
    tokens: int = 0
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


async def run(send: Send, *, rate: float, seconds: float) -> list[Sample]:
    """Start `rate` requests per second for `seconds`, wait for all answers, return them in order."""
    begin = now()
    tasks = []
    for index in range(max(1, round(rate * seconds))):
        scheduled_at = begin + index / rate
        await asyncio.sleep(max(0.0, scheduled_at - now()))
        tasks.append(asyncio.create_task(_one(send, index, scheduled_at)))
    return await asyncio.gather(*tasks)


async def _one(send: Send, index: int, scheduled_at: float) -> Sample:
    sample = Sample(scheduled_at, now())
    sample.answer = await send(index)
    sample.answer.ended_at = now()
    return sample
