"""What best-of-N gained and cost, as metrics: one call per run for its candidates, one per
prompt for the choice.

Rewards of the chosen beside the mean and the worst say what choosing is worth; the spread and the share out
of distribution, of the chosen beside all that were scored, say whether it finds what the reward model only
believes to be good.
"""

from collections import Counter
from collections.abc import Sequence

from gateway.candidates import Candidate
from gateway.metrics import Metrics


def count_candidates(metrics: Metrics, candidates: Sequence[Candidate]) -> dict[str, int]:
    """How many became what, however the run ended."""
    counts = Counter(map(_status, candidates))
    for status, count in counts.items():
        metrics.candidates.labels(status).inc(count)
    return counts


def observe_selection(
    metrics: Metrics,
    candidates: Sequence[Candidate],
    chosen: Sequence[Candidate],
    degraded: str | None,
    kl_bound_nats: float,
) -> None:
    """The choice for one prompt. Where rewards chose nothing, none of the candidates has one any more."""
    metrics.tokens.labels("selected").inc(sum(candidate.completion_tokens or 0 for candidate in chosen))
    metrics.kl_bound.observe(kl_bound_nats)
    if degraded is not None:
        metrics.degraded.labels(degraded).inc()
    scored = [candidate for candidate in candidates if candidate.reward is not None]
    if scored:
        _observe_rewards(metrics, sorted(c.reward for c in scored if c.reward is not None))
        _observe_doubts(metrics, "scored", scored)
        _observe_doubts(metrics, "chosen", chosen)


def _observe_rewards(metrics: Metrics, rewards: Sequence[float]) -> None:
    """`rewards` rise."""
    best, mean = rewards[-1], sum(rewards) / len(rewards)
    metrics.reward.labels("chosen").observe(best)
    metrics.reward.labels("mean").observe(mean)
    metrics.reward.labels("worst").observe(rewards[0])
    metrics.reward_gain.observe(best - mean)
    if len(rewards) > 1:
        metrics.win_margin.observe(best - rewards[-2])


def _observe_doubts(metrics: Metrics, of: str, candidates: Sequence[Candidate]) -> None:
    """Where the reward server tells of them. A number instead of yes or no has no meaning to count by. Labels
    are looked up once for all candidates: that costs more than counting."""
    told = [c.out_of_distribution for c in candidates if isinstance(c.out_of_distribution, bool)]
    if told:
        metrics.judged.labels(of, "out").inc(told.count(True))  # both are there from the first on, be they 0
        metrics.judged.labels(of, "in").inc(told.count(False))
    spreads = [candidate.spread for candidate in candidates if candidate.spread is not None]
    if spreads:
        histogram = metrics.reward_spread.labels(of)
        for spread in spreads:
            histogram.observe(spread)


def _status(candidate: Candidate) -> str:
    if candidate.reward is not None:
        return "scored"
    if candidate.too_long:
        return "too_long"
    return "unscored" if candidate.finished else "unfinished"
