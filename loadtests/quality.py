"""What the answers of a run were worth, beside how fast they came: by best_of and method.

Rewards are the gateway's own, from each answer's `alignment` record; an answer that nothing was chosen for
(best_of 1, another server) has none. `judge` gives those a reward too, and all others one by the same hand:
it sends what was answered to a reward server's /score once the load is over.
"""

import asyncio
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from loadtests.client import Client
from loadtests.figures import percentile
from loadtests.open_loop import Sample
from loadtests.prompts import Messages
from loadtests.scenarios import Ask
from loadtests.stages import Stage

MOST_JUDGED = 400
"""Answers of a stage, spread evenly over it."""
AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The answers of one best_of and method. Means are nan of nothing; `*_ci95` is half the width of the
    interval around them."""

    best_of: int
    method: str
    """"" where the answers have no record."""
    answers: int
    reward: float
    """Of the answers, by the gateway's record."""
    reward_ci95: float
    candidates_reward: float
    """Of all candidates that were scored: what a single sample would have been worth."""
    judged_reward: float
    judged_reward_ci95: float
    latency_p50_ms: float
    latency_p99_ms: float
    tokens_returned: float
    """Per answer."""
    tokens_sampled: float
    """Per answer, of all candidates."""
    degraded: int


def answered(samples: Sequence[Sample]) -> list[tuple[int, Sample]]:
    """Those with a whole answer, with their numbers."""
    return [
        (number, sample)
        for number, sample in enumerate(samples)
        if sample.answer.error is None and not sample.answer.cancelled
    ]


def qualities(stage: Stage) -> list[Quality]:
    """One for each best_of and method, smallest first."""
    groups: dict[tuple[int, str], list[tuple[int, Sample]]] = {}
    for number, sample in answered(stage.samples):
        record = sample.answer.alignment
        key = (record.best_of, record.method) if record else (sample.best_of, "")
        groups.setdefault(key, []).append((number, sample))
    return [_quality(*key, groups[key], stage) for key in sorted(groups)]


def _quality(best_of: int, method: str, members: Sequence[tuple[int, Sample]], stage: Stage) -> Quality:
    answers = [sample.answer for _, sample in members]
    records = [answer.alignment for answer in answers if answer.alignment is not None]
    rewards = [record.reward for record in records if record.reward is not None]
    rewards += [score for answer in answers for score in answer.scores]
    judged = [stage.judged[number] for number, _ in members if number in stage.judged]
    returned = [
        answer.alignment.usage.selected_completion_tokens if answer.alignment else answer.tokens
        for answer in answers
    ]
    latencies = [sample.latency_s * 1000 for _, sample in members]
    return Quality(
        best_of=best_of,
        method=method,
        answers=len(answers),
        reward=mean(rewards),
        reward_ci95=ci95(rewards),
        candidates_reward=mean([r.reward_mean for r in records if r.reward_mean is not None]),
        judged_reward=mean(judged),
        judged_reward_ci95=ci95(judged),
        latency_p50_ms=percentile(latencies, 0.5),
        latency_p99_ms=percentile(latencies, 0.99),
        tokens_returned=mean(returned),
        tokens_sampled=mean([answer.tokens for answer in answers]),
        degraded=sum(record.degraded is not None for record in records),
    )


def mean(values: Sequence[float]) -> float:
    """nan of nothing."""
    return statistics.fmean(values) if values else math.nan


def ci95(values: Sequence[float]) -> float:
    """Half the width of the mean's 95 % interval, by the normal distribution; nan of less than two."""
    return 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


async def judge(url: str, stages: Sequence[Stage], ask: Ask, timeout_s: float, stop: asyncio.Event) -> int:
    """Have a reward server say what the answers are worth, until `stop`; how many it could not judge."""
    lost = 0
    async with Client(url, timeout_s=timeout_s) as client:
        for stage in stages:
            chosen = _spread([(n, s.answer.text) for n, s in answered(stage.samples) if s.answer.text])
            for batch in range(0, len(chosen), AT_ONCE):
                if stop.is_set():
                    return lost
                asked = chosen[batch : batch + AT_ONCE]
                scores = await asyncio.gather(*(_score(client, ask(n), text) for n, text in asked))
                stage.judged |= {n: s for (n, _), s in zip(asked, scores, strict=True) if s is not None}
                lost += scores.count(None)
    return lost


def _spread(answers: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """MOST_JUDGED of them at most, without a pattern that could meet the schedule's."""
    if len(answers) <= MOST_JUDGED:
        return list(answers)
    return [answers[k * len(answers) // MOST_JUDGED] for k in range(MOST_JUDGED)]


async def _score(client: Client, messages: Messages, text: str) -> float | None:
    body = msgspec.json.encode({"messages": messages, "responses": [text]})
    answer = await client.post("/score", body, streamed=False)
    return answer.scores[0] if answer.error is None and len(answer.scores) == 1 else None
