"""What a stage is measured by: the figures of a report, and the names that thresholds know them by."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadtests.figures import Figure, percentile
from loadtests.open_loop import Answer, Sample, lag
from loadtests.quality import answered, mean
from loadtests.stages import FIRST, Stage
from loadtests.thresholds import Threshold


@dataclass(frozen=True)
class Facts:
    """What the measures are computed from."""

    stage: Stage
    good: Sequence[Sample]
    """With a whole answer."""
    duration_s: float

    @property
    def answers(self) -> list[Answer]:
        return [sample.answer for sample in self.good]


@dataclass(frozen=True)
class Measure:
    """One figure; nan where a stage has none of it."""

    key: str
    figure: str
    unit: str
    of: Callable[[Facts], float]


def _latency(share: float) -> Callable[[Facts], float]:
    return lambda facts: percentile([sample.latency_s * 1000 for sample in facts.good], share)


def _first(share: float) -> Callable[[Facts], float]:
    return lambda facts: percentile(
        [
            (sample.answer.first_at - sample.scheduled_at) * 1000
            for sample in facts.good
            if sample.answer.first_at is not None
        ],
        share,
    )


def _gap(share: float) -> Callable[[Facts], float]:
    return lambda facts: percentile([gap * 1000 for answer in facts.answers for gap in answer.gaps_s], share)


def _per_token(facts: Facts) -> float:
    """The median over the streams of several tokens; that of a stream is its chunks' time by its tokens."""
    paces = [sum(a.gaps_s) * 1000 / (a.tokens - 1) for a in facts.answers if a.gaps_s and a.tokens > 1]
    return percentile(paces, 0.5)


def _lag(share: float) -> Callable[[Facts], float]:
    return lambda facts: lag(facts.stage.samples, share) * 1000


def _error_share(facts: Facts) -> float:
    failed = sum(sample.answer.error is not None for sample in facts.stage.samples)
    return failed / len(facts.stage.samples) if facts.stage.samples else math.nan


def _reward(facts: Facts) -> float:
    rewards = [a.alignment.reward for a in facts.answers if a.alignment]
    scores = [score for answer in facts.answers for score in answer.scores]
    return mean([reward for reward in rewards if reward is not None] + scores)


def _reward_gain(facts: Facts) -> float:
    gains = [answer.alignment.gain for answer in facts.answers if answer.alignment]
    return mean([gain for gain in gains if gain is not None])


def _degraded_share(facts: Facts) -> float:
    return mean([float(a.alignment.degraded is not None) for a in facts.answers if a.alignment])


MEASURES = (
    Measure("requests", "requests", "", lambda facts: len(facts.stage.samples)),
    Measure("error_share", "failed", "share", _error_share),
    Measure("cancelled", "cancelled", "", lambda f: sum(s.answer.cancelled for s in f.stage.samples)),
    Measure("answered_per_s", "answered", "1/s", lambda facts: len(facts.good) / facts.duration_s),
    Measure("latency_p50_ms", "latency p50", "ms", _latency(0.5)),
    Measure("latency_p90_ms", "latency p90", "ms", _latency(0.9)),
    Measure("latency_p99_ms", "latency p99", "ms", _latency(0.99)),
    Measure("first_content_p50_ms", "first content p50", "ms", _first(0.5)),
    Measure("first_content_p99_ms", "first content p99", "ms", _first(0.99)),
    Measure("between_chunks_p50_ms", "between chunks p50", "ms", _gap(0.5)),
    Measure("between_chunks_p99_ms", "between chunks p99", "ms", _gap(0.99)),
    Measure("per_token_p50_ms", "per token p50", "ms", _per_token),
    Measure("tokens_per_s", "tokens", "1/s", lambda f: sum(a.tokens for a in f.answers) / f.duration_s),
    Measure("tokens_per_answer", "tokens an answer", "", lambda f: mean([a.tokens for a in f.answers])),
    Measure("reward_mean", "reward", "", _reward),
    Measure("reward_gain", "reward above its candidates' mean", "", _reward_gain),
    Measure("judged_reward_mean", "reward by the judge", "", lambda f: mean([*f.stage.judged.values()])),
    Measure("degraded_share", "degraded", "share", _degraded_share),
    Measure("left", "left under way", "", lambda f: math.nan if f.stage.left is None else f.stage.left),
    Measure("lag_p50_ms", "generator's own lag p50", "ms", _lag(0.5)),
    Measure("lag_p99_ms", "generator's own lag p99", "ms", _lag(0.99)),
)
KEYS = tuple(measure.key for measure in MEASURES)


def values(stage: Stage) -> dict[str, float]:
    """Every measure by its key."""
    good = [sample for _, sample in answered(stage.samples)]
    ends = max((s.answer.ended_at for s in stage.samples), default=0.0)
    begin = stage.samples[0].scheduled_at if stage.samples else 0.0
    facts = Facts(stage, good, max(ends - begin, 1e-9))
    return {measure.key: float(measure.of(facts)) for measure in MEASURES}


def failures(stage: Stage) -> Counter[str]:
    """How often what went wrong."""
    return Counter(sample.answer.error for sample in stage.samples if sample.answer.error is not None)


def figures(stage: Stage, command: str, thresholds: Sequence[Threshold] = (), name: str = "") -> list[Figure]:
    """What is shown of a stage, with the thresholds (a compared server has none); its name, where there are
    several, stands in each."""
    found, where = values(stage), f" at {name}" if name else ""
    limits = {limit.key: limit for limit in thresholds if stage.label == FIRST}
    rows = [
        Figure(
            figure=measure.figure + where,
            value=found[measure.key],
            unit=measure.unit,
            target=limits[measure.key].target if measure.key in limits else None,
            met=limits[measure.key].met(found[measure.key]) if measure.key in limits else None,
            noisy=stage.noisy,
            command=command,
        )
        for measure in MEASURES
        if not math.isnan(found[measure.key]) or measure.key in limits or measure.key.startswith("latency")
    ]
    return rows + [
        Figure(figure=f"failed: {error}{where}", value=count, unit="", noisy=stage.noisy, command=command)
        for error, count in sorted(failures(stage).items())
    ]
