"""Rewards for candidates as they finish.

A candidate is handed in the moment it ends; those that ended together (arrived in the same read) share one
call, and calls overlap with the generation of the rest. Identical texts are judged once. A call that is too
long for the reward model is taken apart, so that only the candidates that are too long themselves are left
out.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from gateway.candidates import Candidate
from gateway.errors import GatewayError, InvalidRequestError
from gateway.metrics import Metrics
from gateway.rewards import Question, RewardModel, TooLongError, Verdict


class Scorer:
    """Judges the candidates of one prompt. Use as an async context manager: leaving it cancels what still
    runs."""

    def __init__(self, reward: RewardModel, question: Question, metrics: Metrics) -> None:
        self._reward = reward
        self._question = question
        self._metrics = metrics
        self._waiting: dict[str, list[Candidate]] = {}
        self._same: dict[str, list[Candidate]] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._bug: BaseException | None = None
        """What a call raised that no reward server is to blame for."""
        self.failed = asyncio.Event()
        self.error: GatewayError | None = None
        """The first failure of a call, which is a failure of the whole."""
        self.tokens = 0
        self.model: str | None = None
        self.version: str | None = None

    def submit(self, candidate: Candidate, text: str) -> None:
        """Queue a finished candidate; `flush` sends what is queued."""
        if text not in self._same:
            self._waiting[text] = self._same[text] = []
        elif text not in self._waiting:
            first = self._same[text][0]
            candidate.too_long = first.too_long
            _settle(candidate, first.reward, first.out_of_distribution, first.spread)
        self._same[text].append(candidate)

    def flush(self) -> None:
        """Send all that is queued as one call."""
        if self._waiting and self.error is None:
            texts = list(self._waiting)
            self._waiting = {}
            call = asyncio.create_task(self._judge(texts))
            self._calls.add(call)
            call.add_done_callback(self._ended)

    async def finish(self) -> None:
        """Send what is still queued; wait until every call has ended, or one has failed."""
        self.flush()
        while self._calls and self.error is None and self._bug is None:
            await asyncio.wait(self._calls, return_when=asyncio.FIRST_COMPLETED)
        if self._bug is not None:
            raise self._bug

    async def __aenter__(self) -> "Scorer":
        return self

    async def __aexit__(self, *_: object) -> None:
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            self._bug = self._bug or call.exception()

    async def _judge(self, texts: Sequence[str]) -> None:
        try:
            await self._ask(texts)
        except GatewayError as error:
            self._metrics.reward_errors.inc()
            self.error = self.error or error
            self.failed.set()

    async def _ask(self, texts: Sequence[str]) -> None:
        self._metrics.reward_batch.observe(len(texts))
        try:
            with self._metrics.reward_seconds.time():
                verdict = await self._reward.score(replace(self._question, responses=texts))
        except (TooLongError, InvalidRequestError) as refusal:
            await self._take_apart(texts, refusal)
        else:
            self._attach(texts, verdict)

    async def _take_apart(self, texts: Sequence[str], refusal: GatewayError) -> None:
        """Ask again one by one; what is refused alone is too long itself, or the question is wrong."""
        if len(texts) > 1:
            for text in texts:
                await self._ask([text])
            return
        if not isinstance(refusal, TooLongError):
            raise refusal
        for candidate in self._same[texts[0]]:
            candidate.too_long = True

    def _attach(self, texts: Sequence[str], verdict: Verdict) -> None:
        self.tokens += verdict.tokens
        self.model = verdict.model or self.model
        self.version = verdict.version or self.version
        unsaid = [None] * len(texts)
        strange, spreads = verdict.out_of_distribution or unsaid, verdict.spread or unsaid
        for text, reward, is_strange, spread in zip(texts, verdict.rewards, strange, spreads, strict=True):
            for candidate in self._same[text]:
                _settle(candidate, reward, is_strange, spread)


def _settle(
    candidate: Candidate,
    reward: float | None,
    out_of_distribution: bool | float | None,
    spread: float | None,
) -> None:
    candidate.reward = reward
    candidate.out_of_distribution = out_of_distribution
    candidate.spread = spread
