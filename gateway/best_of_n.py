"""Best-of-N: sample, score, select.

One upstream request with n = N and stream = true, so that the prompt is read once, seeds are `seed + i`, one
closed connection aborts everything, and each candidate can be judged the moment it ends. Selection is pure:
highest reward first, equal rewards by the lower index.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.candidates import Candidate
from gateway.errors import DeadlineError, GatewayError, InvalidRequestError, UpstreamError
from gateway.metrics import Metrics
from gateway.policy import ChoiceDelta, Chunk, Policy, Usage
from gateway.rewards import Question, RewardModel
from gateway.scoring import Scorer

STREAM_INTERVAL = 16
"""Tokens per upstream chunk: candidates are judged whole, so finer pieces only cost time."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One best-of-N request, understood."""

    path: str
    upstream_body: dict[str, Any]
    request_id: str
    questions: Sequence[Question]
    """What to ask the reward model, per prompt, still without responses."""
    prefixes: Sequence[str]
    """Per prompt, text that stands before each candidate when it is judged (a continued message)."""
    n: int
    best_of: int
    samples: int
    """Candidates sampled per prompt: best_of, or 1 where sampling is greedy."""
    first_on_failure: bool
    deadline: float | None
    """Loop time by which the answer is due."""
    reserve_s: float = 0.0
    """The end of the deadline's time that is kept for the reward model."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The outcome for one prompt."""

    candidates: Sequence[Candidate]
    chosen: Sequence[Candidate]
    degraded: str | None
    reward_model: str | None
    reward_model_version: str | None
    reward_tokens: int
    prompt_tokens: int

    @property
    def finished(self) -> int:
        """How many came to a proper end."""
        return sum(candidate.finished for candidate in self.candidates)

    @property
    def rewards(self) -> list[float]:
        """Of those that were scored, by index."""
        return [candidate.reward for candidate in self.candidates if candidate.reward is not None]


@dataclass
class Outcome:
    """What a whole request came to: selections by prompt, counts and times."""

    selections: Sequence[Selection] = ()
    usage: Usage = field(default_factory=Usage)
    system_fingerprint: str | None = None
    generate_s: float = 0.0
    reward_s: float = 0.0
    """From the end of generation until the last reward: the part that did not overlap."""


class Judged(Protocol):
    """Turns a finished candidate into the text that is judged."""

    def __call__(self, candidate: Candidate) -> str:
        """The text."""


def select(candidates: Sequence[Candidate], n: int) -> list[Candidate]:
    """The n best of the scored candidates, best first; equal rewards by the lower index."""
    scored = [candidate for candidate in candidates if candidate.reward is not None]
    return sorted(scored, key=lambda candidate: (-(candidate.reward or 0.0), candidate.index))[:n]


def kl_bound_nats(num_scored: int) -> float:
    """Upper bound on KL(best-of-N, policy) in nats: log N - (N - 1) / N (Beirami et al. 2024); 0 for N <
    2."""
    return math.log(num_scored) - (num_scored - 1) / num_scored if num_scored > 1 else 0.0


class BestOfN:
    """One run of a plan."""

    def __init__(
        self, plan: Plan, policy: Policy, reward: RewardModel, judged: Judged, metrics: Metrics
    ) -> None:
        self._plan = plan
        self._policy = policy
        self._judged = judged
        self._metrics = metrics
        self._candidates = [[Candidate(index) for index in range(plan.samples)] for _ in plan.questions]
        self._scorers = [Scorer(reward, question, metrics) for question in plan.questions]
        self._prompt_tokens = [0] * len(plan.questions)
        self._late = False
        self._broken: GatewayError | None = None
        self._outcome = Outcome()

    async def run(self) -> Outcome:
        """Sample, score, select.

        Raises:
            GatewayError: the policy refused, the reward model failed, or too few candidates could be scored.
        """
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            async with AsyncExitStack() as stack:
                for scorer in self._scorers:
                    await stack.enter_async_context(scorer)
                await self._generate()
                generated = loop.time()
                await self._finish_scoring()
        finally:
            self._count()
        self._outcome.generate_s = generated - start
        self._outcome.reward_s = loop.time() - generated
        self._metrics.upstream_seconds.labels("best_of_n").observe(self._outcome.generate_s)
        self._outcome.selections = [self._select(position) for position in range(len(self._scorers))]
        self._sum_usage()
        return self._outcome

    async def _generate(self) -> None:
        """Sample until all is finished, the policy breaks, time is up, or a failed reward call makes it
        pointless."""
        plan = self._plan
        sampling = asyncio.create_task(self._sample())
        failures = [
            asyncio.create_task(scorer.failed.wait()) for scorer in self._scorers if not plan.first_on_failure
        ]
        due = (
            None
            if plan.deadline is None
            else plan.deadline - plan.reserve_s - asyncio.get_running_loop().time()
        )
        try:
            done, _ = await asyncio.wait(
                {sampling, *failures}, timeout=due, return_when=asyncio.FIRST_COMPLETED
            )
            self._late = not done
            if sampling in done:
                self._broken = _upstream_failure(sampling)
        finally:
            for task in (sampling, *failures):
                task.cancel()
            await asyncio.gather(sampling, *failures, return_exceptions=True)
        if self._broken and not any(c.finished for row in self._candidates for c in row):
            raise self._broken

    async def _sample(self) -> None:
        plan = self._plan
        stream = self._policy.sample(plan.path, plan.upstream_body, plan.request_id)
        async with aclosing(stream) as arrivals:
            await self._collect(arrivals)

    async def _collect(self, arrivals: AsyncIterator[list[Chunk]]) -> None:
        async for chunks in arrivals:
            for chunk in chunks:
                self._take(chunk)
            for scorer in self._scorers:
                scorer.flush()

    def _take(self, chunk: Chunk) -> None:
        outcome = self._outcome
        outcome.system_fingerprint = chunk.system_fingerprint or outcome.system_fingerprint
        if not chunk.choices and chunk.usage is not None:
            outcome.usage = chunk.usage
        for piece in chunk.choices:
            self._take_piece(piece, chunk.usage if len(chunk.choices) == 1 else None)

    def _take_piece(self, piece: ChoiceDelta, usage: Usage | None) -> None:
        position, index = divmod(piece.index, self._plan.samples)
        if not 0 <= position < len(self._candidates):
            raise UpstreamError("The policy server sent a candidate that was not asked for.")
        candidate = self._candidates[position][index]
        if candidate.finish_reason is not None:
            return
        candidate.add(piece)
        if usage is not None:
            candidate.completion_tokens = usage.completion_tokens
            self._prompt_tokens[position] = max(self._prompt_tokens[position], usage.prompt_tokens)
        if candidate.finished:
            text = self._plan.prefixes[position] + self._judged(candidate)
            self._scorers[position].submit(candidate, text)

    async def _finish_scoring(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._plan.deadline):
                for scorer in self._scorers:
                    await scorer.finish()
            return
        self._late = True

    def _select(self, position: int) -> Selection:
        plan, scorer, candidates = self._plan, self._scorers[position], self._candidates[position]
        finished = [candidate for candidate in candidates if candidate.finished]
        chosen = select(candidates, plan.n)
        degraded = self._shortfall(candidates)
        if scorer.error is not None or len(chosen) < plan.n:
            wrong_question = isinstance(scorer.error, InvalidRequestError)
            if wrong_question or not plan.first_on_failure or len(finished) < plan.n:
                raise self._failure(scorer)
            chosen = finished[: plan.n]
            degraded = "reward_unavailable"
            _forget_rewards(candidates)
        selection = Selection(
            candidates=candidates,
            chosen=chosen,
            degraded=degraded,
            reward_model=scorer.model,
            reward_model_version=scorer.version,
            reward_tokens=scorer.tokens,
            prompt_tokens=self._prompt_tokens[position],
        )
        self._observe(selection)
        return selection

    def _failure(self, scorer: Scorer) -> GatewayError:
        if scorer.error is not None:
            error: GatewayError = scorer.error
            error.should_retry = False if error.status >= 500 else None
            return error
        if self._late:
            return DeadlineError("The deadline came before enough candidates were generated and scored.")
        return UpstreamError(
            "Fewer candidates than `n` could be scored: the others failed,"
            " were too long for the reward model, or were given no finite reward.",
            code="too_few_candidates",
            should_retry=False,
        )

    def _shortfall(self, candidates: Sequence[Candidate]) -> str | None:
        """Why an answer is less than what was asked for, the gravest reason first."""
        if all(candidate.reward is not None for candidate in candidates):
            return "greedy" if self._plan.samples < self._plan.best_of else None
        if self._late:
            return "deadline"
        if not all(candidate.finished for candidate in candidates):
            return "candidates_failed"
        return "candidates_too_long" if any(c.too_long for c in candidates) else "rewards_invalid"

    def _sum_usage(self) -> None:
        """The policy's own sum where it sent one; else the sum of what it counted candidate by candidate."""
        usage = self._outcome.usage
        counts = [candidate.completion_tokens or 0 for row in self._candidates for candidate in row]
        usage.completion_tokens = max(usage.completion_tokens or 0, sum(counts))
        usage.prompt_tokens = max(usage.prompt_tokens, sum(self._prompt_tokens))
        self._metrics.tokens.labels("prompt").inc(usage.prompt_tokens)
        self._metrics.tokens.labels("completion").inc(usage.completion_tokens)
        self._metrics.tokens.labels("reward").inc(sum(scorer.tokens for scorer in self._scorers))

    def _count(self) -> None:
        for candidate in (candidate for row in self._candidates for candidate in row):
            self._metrics.candidates.labels(_status(candidate)).inc()

    def _observe(self, selection: Selection) -> None:
        self._metrics.tokens.labels("selected").inc(sum(c.completion_tokens or 0 for c in selection.chosen))
        if selection.degraded is not None:
            self._metrics.degraded.labels(selection.degraded).inc()
        if selection.rewards:
            self._metrics.reward_gain.observe(
                max(selection.rewards) - sum(selection.rewards) / len(selection.rewards)
            )


def _upstream_failure(sampling: asyncio.Task[None]) -> GatewayError | None:
    error = sampling.exception()
    if error is None or isinstance(error, GatewayError):
        return error
    raise error


def _forget_rewards(candidates: Sequence[Candidate]) -> None:
    """Rewards that chose nothing are not shown; which of them came before a call failed depends on the
    clock."""
    for candidate in candidates:
        candidate.reward = None


def _status(candidate: Candidate) -> str:
    if candidate.reward is not None:
        return "scored"
    if candidate.too_long:
        return "too_long"
    return "unscored" if candidate.finished else "unfinished"
