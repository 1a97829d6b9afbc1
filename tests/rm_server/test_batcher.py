"""Batches fill while the model is busy, are cut by length, and give every request its own logits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import Executor

import pytest

from rm_server.batcher import Batcher, Scored
from rm_server.errors import InvalidRequestError, QueueFullError, ScoringFailedError
from rm_server.metrics import Metrics
from tests.rm_server.fakes import BROKEN, FakeScorer, sample, until


@contextlib.asynccontextmanager
async def serving(
    scorer: FakeScorer, executor: Executor, metrics: Metrics, *, queue: int = 1000, batch: int = 100
) -> AsyncIterator[Batcher]:
    batcher = Batcher(scorer, executor, metrics, max_batch_tokens=batch, max_queue_tokens=queue)
    task = asyncio.create_task(batcher.run())
    try:
        yield batcher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_idle_server_starts_at_once(executor: Executor, metrics: Metrics) -> None:
    scorer = FakeScorer()
    async with serving(scorer, executor, metrics) as batcher:
        scored = await batcher.score([[1, 2, 3], [4]])
    assert scored.logits == [[6.0], [4.0]]
    assert scored.queue_s >= 0
    assert scored.infer_s > 0
    assert scorer.batches == [[[1, 2, 3], [4]]]


async def test_requests_that_came_while_it_was_busy_share_the_next_batch(
    executor: Executor, metrics: Metrics
) -> None:
    scorer = FakeScorer(held=True)
    async with serving(scorer, executor, metrics) as batcher:
        first = asyncio.create_task(batcher.score([[9]]))
        await scorer.entered()
        later = [asyncio.create_task(batcher.score([[i, i], [i]])) for i in (1, 2, 3)]
        await until(lambda: sample(metrics, "queue_tokens") == 9)
        scorer.release(2)
        assert (await first).logits == [[9.0]]
        assert [(await task).logits for task in later] == [[[2.0 * i], [1.0 * i]] for i in (1, 2, 3)]
    assert scorer.batches == [[[9]], [[1, 1], [2, 2], [3, 3], [1], [2], [3]]]  # longest first
    assert sample(metrics, "queue_tokens") == 0
    assert sample(metrics, "tokens_total") == 10


async def test_a_full_queue_refuses_and_says_when_to_come_back(executor: Executor, metrics: Metrics) -> None:
    scorer = FakeScorer(held=True)
    async with serving(scorer, executor, metrics, queue=10) as batcher:
        running = asyncio.create_task(batcher.score([[1]]))
        await scorer.entered()
        waiting = asyncio.create_task(batcher.score([[1] * 8]))
        await until(lambda: sample(metrics, "queue_tokens") == 8)
        with pytest.raises(QueueFullError) as refused:
            await batcher.score([[1] * 3])
        fits = asyncio.create_task(batcher.score([[1] * 2]))
        await until(lambda: sample(metrics, "queue_tokens") == 10)
        scorer.release(2)
        for task in (running, waiting, fits):
            await task
    assert refused.value.headers == {"retry-after": "1"}
    assert sample(metrics, "rejected_total") == 1


async def test_what_the_queue_can_never_hold_is_the_clients_mistake(
    executor: Executor, metrics: Metrics
) -> None:
    async with serving(FakeScorer(), executor, metrics, queue=10) as batcher:
        with pytest.raises(InvalidRequestError, match="12 tokens, 2 more than the queue of 10") as refused:
            await batcher.score([[1] * 6, [1] * 6])
    assert refused.value.code == "request_too_large"


async def test_a_cancelled_request_leaves_the_queue_and_nobody_computes_it(
    executor: Executor, metrics: Metrics
) -> None:
    scorer = FakeScorer(held=True)
    async with serving(scorer, executor, metrics) as batcher:
        running = asyncio.create_task(batcher.score([[1]]))
        await scorer.entered()
        abandoned = asyncio.create_task(batcher.score([[2], [2, 2]]))
        kept = asyncio.create_task(batcher.score([[3]]))
        await until(lambda: sample(metrics, "queue_tokens") == 4)
        abandoned.cancel()
        await until(lambda: sample(metrics, "queue_tokens") == 1)
        scorer.release(2)
        await running
        assert (await kept).logits == [[3.0]]
    assert scorer.batches == [[[1]], [[3]]]


async def test_a_request_cancelled_between_two_of_its_batches_skips_the_second(
    executor: Executor, metrics: Metrics
) -> None:
    scorer = FakeScorer(held=True)
    async with serving(scorer, executor, metrics, batch=4) as batcher:
        abandoned = asyncio.create_task(batcher.score([[5] * 4, [5] * 4]))  # two batches of one row
        await scorer.entered()
        abandoned.cancel()
        kept = asyncio.create_task(batcher.score([[6]]))
        scorer.release(2)
        assert (await kept).logits == [[6.0]]
    assert scorer.batches == [[[5] * 4], [[6]]]


async def test_a_failed_batch_fails_its_requests_and_no_other(executor: Executor, metrics: Metrics) -> None:
    scorer = FakeScorer()
    async with serving(scorer, executor, metrics) as batcher:
        with pytest.raises(ScoringFailedError):
            await batcher.score([[BROKEN], [1]])
        assert (await batcher.score([[1]])).logits == [[1.0]]
    assert sample(metrics, "queue_tokens") == 0


async def test_the_rest_of_a_failed_request_is_not_computed(executor: Executor, metrics: Metrics) -> None:
    scorer = FakeScorer()
    rows = [[BROKEN] * 4, *[[1] * 3 for _ in range(20)]]  # more than one window
    async with serving(scorer, executor, metrics, batch=4) as batcher:
        with pytest.raises(ScoringFailedError):
            await batcher.score(rows)
        await batcher.score([[2]])
    assert scorer.batches == [[[BROKEN] * 4], [[2]]]
    assert sample(metrics, "queue_tokens") == 0


async def test_every_request_gets_its_own_logits_in_its_own_order(
    executor: Executor, metrics: Metrics
) -> None:
    requests = [[[i + j] * (1 + (i * 7 + j * 5) % 23) for j in range(1 + i % 4)] for i in range(1, 40)]
    async with serving(FakeScorer(), executor, metrics, queue=100_000, batch=64) as batcher:
        results: list[Scored] = await asyncio.gather(*(batcher.score(rows) for rows in requests))
    for rows, result in zip(requests, results, strict=True):
        assert result.logits == [[float(sum(ids))] for ids in rows]
