"""Best-of-N: sample, score, select.

Candidates come as streams, so that each can be judged the moment it ends (see `gateway.pieces` for how many
requests upstream that takes). What was lost with a server in the middle of its answer is sampled again by
another, if there is one and 40 % of the time is left. Selection is pure: highest reward first, equal
rewards by the lower index.
"""

import asyncio
import math
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway import tracing
from gateway.candidates import Candidate
from gateway.errors import DeadlineError, GatewayError, InvalidRequestError, UpstreamError
from gateway.metrics import Metrics
from gateway.pieces import Piece, cut, regroup
from gateway.policy import Call, Policy, Usage
from gateway.rewards import Question, RewardModel
from gateway.sampling import Sampling, all_of
from gateway.scoring import Scorer
from gateway.selection_metrics import count_candidates, observe_selection

STREAM_INTERVAL = 16
"""Tokens per upstream chunk: candidates are judged whole, so finer pieces only cost time."""
WORTH_REPEATING = 0.4
"""Of a request's time: with less of it left, lost candidates are not sampled again."""


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
    max_per_call: int = 64
    """Candidates that one request upstream may sample."""
    affinity: bytes = b""
    """See `policy.Call`."""
    asked: list[str] = field(default_factory=list)
    """See `policy.Call`."""


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
        self._samplings: list[Sampling] = []
        self._late = False
        self._broken: GatewayError | None = None
        self._start = 0.0
        self._outcome = Outcome()

    @property
    def tokens(self) -> int:
        """All that was used, of the prompts and of every candidate, however the run ended."""
        return self._outcome.usage.prompt_tokens + (self._outcome.usage.completion_tokens or 0)

    async def run(self) -> Outcome:
        """Sample, score, select.

        Raises:
            GatewayError: the policy refused, the reward model failed, or too few candidates could be scored.
        """
        loop = asyncio.get_running_loop()
        self._start = start = loop.time()
        try:
            async with AsyncExitStack() as stack:
                for scorer in self._scorers:
                    await stack.enter_async_context(scorer)
                await self._generate()
                generated = loop.time()
                await self._finish_scoring()
        finally:
            self._sum_usage()
            everyone = [candidate for row in self._candidates for candidate in row]
            counts = count_candidates(self._metrics, everyone)
            tracing.current().set({f"bonsai.candidates.{status}": counts[status] for status in counts})
        self._outcome.generate_s = generated - start
        self._outcome.reward_s = loop.time() - generated
        self._metrics.upstream_seconds.labels("best_of_n").observe(self._outcome.generate_s)
        self._outcome.selections = [self._select(position) for position in range(len(self._scorers))]
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
                self._broken = _upstream_failure(sampling) or self._broken
        finally:
            for task in (sampling, *failures):
                task.cancel()
            await asyncio.gather(sampling, *failures, return_exceptions=True)
        if self._broken and not any(c.finished for row in self._candidates for c in row):
            raise self._advised(self._broken)

    def _advised(self, error: GatewayError) -> GatewayError:
        """The policy's error: once it had begun, a retry would spend all of the candidates again."""
        if error.status >= 500 and any(sampling.begun for sampling in self._samplings):
            error.should_retry = False
        return error

    async def _sample(self) -> None:
        plan = self._plan
        pieces = cut(len(self._candidates), plan.samples, plan.max_per_call)
        await self._sample_all(pieces, again=False)

    async def _sample_all(self, pieces: Sequence[Piece], *, again: bool) -> None:
        if len(pieces) == 1:
            await self._sample_piece(pieces[0], again=again)
        else:
            await all_of([asyncio.create_task(self._sample_piece(piece, again=again)) for piece in pieces])

    async def _sample_piece(self, piece: Piece, *, again: bool) -> None:
        """One request upstream; what is lost of it goes to another server, once."""
        plan = self._plan
        sampling = Sampling(piece, self._candidates)
        number = len(self._samplings)
        self._samplings.append(sampling)
        call = Call(
            path=plan.path,
            body=piece.body(plan.upstream_body),
            request_id=f"{plan.request_id}-{number}" if number else plan.request_id,
            work=len(piece.members),
            affinity=plan.affinity,
            again=again,
            asked=plan.asked,
        )
        await sampling.run(self._policy, call, self._submit, self._flush)
        if sampling.error is None:
            return
        lost = sampling.lost if sampling.begun and not again else []
        if lost and self._worth_repeating() and self._policy.may_sample_again():
            for prompt, index in lost:
                self._candidates[prompt][index].begin_again()
            await self._sample_all(regroup(lost, seeded="seed" in call.body), again=True)
        elif sampling.error.status < 500:
            raise sampling.error
        else:
            self._broken = sampling.error

    def _worth_repeating(self) -> bool:
        deadline = self._plan.deadline
        if deadline is None:
            return True
        left = deadline - asyncio.get_running_loop().time()
        return left > WORTH_REPEATING * (deadline - self._start)

    def _submit(self, prompt: int, candidate: Candidate) -> None:
        self._scorers[prompt].submit(candidate, self._plan.prefixes[prompt] + self._judged(candidate))

    def _flush(self) -> None:
        for scorer in self._scorers:
            scorer.flush()

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
            prompt_tokens=self._prompt_tokens(position),
        )
        bound = kl_bound_nats(len(selection.rewards))
        observe_selection(self._metrics, candidates, chosen, degraded, bound)
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

    def _prompt_tokens(self, position: int) -> int:
        """Of one prompt, as the policy counted it with one of its candidates, or with a piece that had
        no other.
        """
        counts = [sampling.prompt_tokens.get(position, 0) for sampling in self._samplings]
        counts += [s.usage.prompt_tokens for s in self._samplings if s.piece.prompts == (position,)]
        return max(counts, default=0)

    def _sum_usage(self) -> None:
        """Every token received of every candidate, those of lost ones too; each prompt once. Also of a run
        that failed or was cancelled, as far as the policy had counted by then."""
        prompts = len(self._candidates)
        whole = [s.usage.prompt_tokens for s in self._samplings if len(s.piece.prompts) == prompts]
        details = [s.usage.prompt_tokens_details for s in self._samplings]
        self._outcome.usage = usage = Usage(
            prompt_tokens=max([sum(map(self._prompt_tokens, range(prompts))), *whole]),
            completion_tokens=sum(sampling.completion_tokens for sampling in self._samplings),
            prompt_tokens_details=details[0] if len(details) == 1 else None,
        )
        fingerprints = (sampling.system_fingerprint for sampling in self._samplings)
        self._outcome.system_fingerprint = next((name for name in fingerprints if name), None)
        self._metrics.tokens.labels("prompt").inc(usage.prompt_tokens)
        for kind in ("completion", "sampled"):
            self._metrics.tokens.labels(kind).inc(usage.completion_tokens or 0)
        self._metrics.tokens.labels("reward").inc(sum(scorer.tokens for scorer in self._scorers))


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
