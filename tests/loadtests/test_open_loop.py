"""Requests start by the clock, and latencies count from the scheduled instant."""

import asyncio
from itertools import pairwise

import pytest

from loadtests.open_loop import NOT_SENT, Answer, Sample, drive, lag_p99, run, schedule


async def test_requests_start_by_the_clock_though_none_is_answered() -> None:
    started: list[int] = []
    all_started = asyncio.Event()

    async def send(index: int) -> Answer:
        started.append(index)
        if len(started) == 20:
            all_started.set()
        await all_started.wait()  # nobody is answered before the last has started
        return Answer(tokens=index)

    samples = await asyncio.wait_for(run(send, rate=2000, seconds=0.01), 60)
    assert started == list(range(20))
    assert [sample.answer.tokens for sample in samples] == list(range(20))
    gaps = [after.scheduled_at - before.scheduled_at for before, after in pairwise(samples)]
    assert gaps == pytest.approx([1 / 2000] * 19)
    assert all(sample.lag_s >= 0 for sample in samples)
    assert all(sample.answer.ended_at >= samples[-1].started_at for sample in samples)


async def test_a_short_run_still_sends_one_request() -> None:
    async def send(index: int) -> Answer:
        return Answer()

    assert len(await run(send, rate=0.1, seconds=1)) == 1


def test_latency_counts_the_wait_before_the_start() -> None:
    sample = Sample(scheduled_at=10.0, started_at=10.5, answer=Answer(ended_at=12.0))
    assert sample.lag_s == 0.5
    assert sample.latency_s == 2.0


@pytest.mark.parametrize(
    ("then", "expected"),
    [(None, [0, 0.5, 1, 1.5]), ((1.0, 2.0), [0, 0.5, 1, 1.5, 2, 3])],
)
def test_the_schedule(then: tuple[float, float] | None, expected: list[float]) -> None:
    assert schedule(2.0, 2.0, then) == expected


def test_the_lag_is_that_of_all_but_the_worst_in_a_hundred() -> None:
    lags = [0.001] * 99 + [1.0]
    assert lag_p99([Sample(0.0, lag) for lag in lags]) == 0.001


async def test_beyond_the_bound_nothing_is_sent() -> None:
    started: list[int] = []
    release = asyncio.Event()

    async def send(index: int) -> Answer:
        started.append(index)
        if index == 1:
            release.set()
        await release.wait()
        return Answer()

    samples = await drive(send, [0.0] * 2 + [0.01] * 3, max_in_flight=2)
    assert started[:2] == [0, 1]
    assert all(sample.answer.error in {None, NOT_SENT} for sample in samples)
    assert [sample.answer.error for sample in samples[:2]] == [None, None]


async def test_a_run_that_is_stopped_starts_no_more() -> None:
    stop = asyncio.Event()

    async def send(index: int) -> Answer:
        if index == 2:
            stop.set()
        return Answer(tokens=index)

    samples = await asyncio.wait_for(drive(send, [0.0, 0.0, 0.001, 3600.0], stop=stop), 60)
    assert [sample.answer.tokens for sample in samples] == [0, 1, 2]
