"""Queue -> batches: sequences from many requests share forward passes, and each gets its own logits back.

One task takes what waits, oldest first, up to a window of tokens, sorts it by length, cuts it into forward
passes and runs them one after another in the scorer's thread. An idle server starts at once: batches fill
only with what arrived while the one before was running. The queue is bounded in tokens, so the wait is
bounded too.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Protocol

from rm_server.errors import InvalidRequestError, QueueFullError, ScoringFailedError
from rm_server.metrics import Metrics
from rm_server.planning import Plan, plan_padded
from rm_server.tracing import Span, current

logger = logging.getLogger(__name__)

# The window that is sorted, in forward passes. More sorts better and answers the oldest later.
WINDOW_BATCHES = 4
MAX_RETRY_AFTER_S = 60


class Scorer(Protocol):
    """The seam to the model; `score` runs in a thread of its own, one call at a time."""

    def score(self, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        """Token ids, one list per row -> raw logits, one list of labels per row, in the same order."""


@dataclass(frozen=True)
class Scored:
    """Raw logits of one request's rows (rows x labels), and where its time went, in seconds."""

    logits: list[list[float]]
    queue_s: float
    infer_s: float


@dataclass(eq=False)
class _Job:
    """One request in the queue."""

    rows: Sequence[Sequence[int]]
    done: asyncio.Future[None]
    span: Span = field(default_factory=current)
    arrived: float = field(default_factory=time.perf_counter)
    started: float | None = None
    next_row: int = 0  # the first row that no batch has taken
    missing: int = 0
    logits: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class _Row:
    job: _Job
    index: int

    @property
    def ids(self) -> Sequence[int]:
        return self.job.rows[self.index]


class Batcher:
    """Owns the queue of one model. `score` is for request handlers, `run` for one background task."""

    def __init__(
        self,
        scorer: Scorer,
        executor: Executor,
        metrics: Metrics,
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        plan: Plan = plan_padded,
    ) -> None:
        self._scorer = scorer
        self._executor = executor
        self._metrics = metrics
        self._max_batch_tokens = max_batch_tokens
        self._plan = plan
        self._max_queue_tokens = max_queue_tokens
        self._queue: deque[_Job] = deque()
        self._queued_tokens = 0
        self._arrival = asyncio.Event()
        self._tokens_per_s = 0.0

    async def score(self, rows: Sequence[Sequence[int]]) -> Scored:
        """Waits for the logits of `rows`. Cancelling it takes its rows out of the queue.

        Raises QueueFullError, InvalidRequestError (more tokens than the queue can ever hold),
        ScoringFailedError.
        """
        tokens = sum(map(len, rows))
        self._admit(tokens)
        job = _Job(rows, asyncio.get_running_loop().create_future())
        job.missing = len(rows)
        job.logits = [[] for _ in rows]
        self._queue.append(job)
        self._count(tokens)
        self._arrival.set()
        try:
            await job.done
        finally:
            self._forget(job)
        assert job.started is not None
        return Scored(job.logits, job.started - job.arrived, time.perf_counter() - job.started)

    async def run(self) -> None:
        """Serves the queue until cancelled."""
        while True:
            await self._arrival.wait()
            window = self._take_window()
            if not window:
                self._arrival.clear()
                continue
            for batch in self._plan(window, self._max_batch_tokens):
                await self._run_batch([row for row in batch if not row.job.done.done()])

    async def ready(self) -> bool:
        """Whether it could score now: always, where `run` runs."""
        return True

    def _admit(self, tokens: int) -> None:
        if tokens > self._max_queue_tokens:
            raise InvalidRequestError(
                f"The request holds {tokens} tokens, {tokens - self._max_queue_tokens} more than the queue "
                f"of {self._max_queue_tokens}. Split it into several requests.",
                code="request_too_large",
            )
        if self._queued_tokens + tokens > self._max_queue_tokens:
            self._metrics.rejected.inc()
            raise QueueFullError(self._seconds_until_room(tokens))

    def _seconds_until_room(self, tokens: int) -> int:
        if not self._tokens_per_s:
            return 1
        excess = self._queued_tokens + tokens - self._max_queue_tokens
        return max(1, min(MAX_RETRY_AFTER_S, math.ceil(excess / self._tokens_per_s)))

    def _count(self, tokens: int) -> None:
        self._queued_tokens += tokens
        self._metrics.queue_tokens.inc(tokens)

    def _forget(self, job: _Job) -> None:
        """Takes out of the queue what no batch has taken: nothing, unless the job failed or was cancelled."""
        if job.next_row < len(job.rows):
            self._count(-sum(map(len, job.rows[job.next_row :])))
            job.next_row = len(job.rows)

    def _take_window(self) -> list[_Row]:
        """The oldest waiting rows, at least one, up to the window's tokens."""
        window: list[_Row] = []
        room = WINDOW_BATCHES * self._max_batch_tokens
        while self._queue:
            job = self._queue[0]
            if job.next_row == len(job.rows):
                self._queue.popleft()
                continue
            row = _Row(job, job.next_row)
            if window and len(row.ids) > room:
                break
            job.next_row += 1
            room -= len(row.ids)
            self._count(-len(row.ids))
            window.append(row)
        return window

    async def _run_batch(self, rows: list[_Row]) -> None:
        if not rows:
            return
        started = time.perf_counter()
        jobs = {row.job: row.job.started is None for row in rows}
        for job in (job for job, is_first in jobs.items() if is_first):
            job.started = started
            job.span.past("queue", job.arrived, started, {})
        loop = asyncio.get_running_loop()
        try:
            logits = await loop.run_in_executor(self._executor, self._scorer.score, [row.ids for row in rows])
        except Exception:  # whatever the model raises fails this batch alone; the queue is served on
            logger.exception("a batch of %d rows failed", len(rows))
            _fail(rows)
            return
        ended = time.perf_counter()
        tokens = sum(len(row.ids) for row in rows)
        self._observe(len(rows), tokens, ended - started)
        about = {"bonsai.batch.rows": len(rows), "bonsai.batch.tokens": tokens}
        for job in jobs:
            job.span.past("forward pass", started, ended, about)
        for row, values in zip(rows, logits, strict=True):
            _deliver(row, values)

    def _observe(self, num_rows: int, tokens: int, seconds: float) -> None:
        self._tokens_per_s = (
            0.9 * self._tokens_per_s + 0.1 * tokens / seconds if self._tokens_per_s else tokens / seconds
        )
        self._metrics.batch_rows.observe(num_rows)
        self._metrics.batch_seconds.observe(seconds)
        self._metrics.tokens.inc(tokens)


def _deliver(row: _Row, logits: list[float]) -> None:
    job = row.job
    job.logits[row.index] = logits
    job.missing -= 1
    if job.missing == 0 and not job.done.done():
        job.done.set_result(None)


def _fail(rows: list[_Row]) -> None:
    for row in rows:
        if not row.job.done.done():
            row.job.done.set_exception(ScoringFailedError())
