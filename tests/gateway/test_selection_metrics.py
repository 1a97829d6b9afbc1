"""What one choice adds to the metrics, by hand."""

import pytest

from gateway.best_of_n import kl_bound_nats, select
from gateway.candidates import Candidate
from gateway.metrics import KL_NATS, Metrics
from gateway.selection_metrics import count_candidates, observe_selection


def candidates(*rewards: float | None) -> list[Candidate]:
    """Finished ones of 10 tokens each, with these rewards."""
    return [
        Candidate(index, completion_tokens=10, finish_reason="stop", reward=reward)
        for index, reward in enumerate(rewards)
    ]


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """A metric's value now."""
    return metrics.registry.get_sample_value(f"bonsai_gateway_{name}", labels) or 0.0


def test_a_choice_is_compared_with_the_mean_the_second_best_and_the_worst() -> None:
    metrics, found = Metrics(), candidates(1.0, 4.0, None, 3.5, -0.5)
    observe_selection(metrics, found, select(found, 1), None, 0.6)
    for of, below, bound in (("chosen", "3.0", "4.0"), ("mean", "1.5", "2.0"), ("worst", "-1.0", "-0.5")):
        assert value(metrics, "reward_bucket", of=of, le=below) == 0
        assert value(metrics, "reward_bucket", of=of, le=bound) == 1
    assert value(metrics, "reward_gain_sum") == 2.0
    assert value(metrics, "win_margin_sum") == 0.5
    assert value(metrics, "kl_bound_nats_sum") == 0.6
    assert value(metrics, "tokens_total", kind="selected") == 10


def test_one_candidate_alone_has_won_against_nobody() -> None:
    metrics, found = Metrics(), candidates(1.0)
    observe_selection(metrics, found, found, "greedy", 0.0)
    assert value(metrics, "win_margin_count") == 0
    assert value(metrics, "reward_count", of="chosen") == 1
    assert value(metrics, "degraded_total", reason="greedy") == 1


def test_what_rewards_did_not_choose_counts_as_an_answer_without_rewards() -> None:
    metrics, found = Metrics(), candidates(None, None)
    observe_selection(metrics, found, found[:1], "reward_unavailable", 0.0)
    assert value(metrics, "kl_bound_nats_count") == 1
    assert value(metrics, "reward_count", of="chosen") == 0


def test_doubts_of_the_chosen_beside_those_of_all_that_were_scored() -> None:
    metrics, found = Metrics(), candidates(1.0, 2.0, 3.0)
    for candidate, (is_strange, spread) in zip(found, [(False, 0.1), (None, None), (True, 0.9)], strict=True):
        candidate.out_of_distribution, candidate.spread = is_strange, spread
    observe_selection(metrics, found, select(found, 1), None, 0.0)
    assert value(metrics, "judged_total", of="chosen", distribution="out") == 1
    assert 'judged_total{distribution="in",of="chosen"} 0.0' in metrics.render().decode()
    assert value(metrics, "judged_total", of="scored", distribution="out") == 1
    assert value(metrics, "judged_total", of="scored", distribution="in") == 1
    assert value(metrics, "reward_spread_sum", of="chosen") == 0.9
    assert value(metrics, "reward_spread_sum", of="scored") == 1.0


def test_a_number_in_place_of_in_or_out_is_not_counted() -> None:
    metrics, found = Metrics(), candidates(1.0)
    found[0].out_of_distribution = 0.7
    observe_selection(metrics, found, found, None, 0.0)
    assert "judged_total{" not in metrics.render().decode()


def test_what_became_of_candidates() -> None:
    metrics, found = Metrics(), [*candidates(1.0, None, None), Candidate(3)]
    found[2].too_long = True
    count_candidates(metrics, found)
    for status in ("scored", "unscored", "too_long", "unfinished"):
        assert value(metrics, "candidates_total", status=status) == 1


@pytest.mark.parametrize(("power", "bound"), list(enumerate(KL_NATS)))
def test_buckets_of_the_bound_end_where_a_power_of_two_was_scored(power: int, bound: float) -> None:
    assert bound - 0.002 < kl_bound_nats(2**power) <= bound
