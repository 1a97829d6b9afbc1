"""What a run's figures say, by hand."""

import math

import pytest

from loadtests.alignment import Alignment, Usage
from loadtests.measures import failures, figures, values
from loadtests.open_loop import Answer, Sample
from loadtests.stages import FIRST, SECOND, Stage
from loadtests.thresholds import Threshold


def sample(at: float, *, end: float, lag: float = 0.0, **answer: object) -> Sample:
    return Sample(at, at + lag, Answer(ended_at=end, **answer))  # type: ignore[arg-type]


def stage(*samples: Sample, label: str = FIRST, noisy: bool = False) -> Stage:
    return Stage(label=label, url="u", model="m", rate=2.0, samples=samples, noisy=noisy)


RUN = stage(
    sample(0.0, first_at=0.1, end=0.2, tokens=10, gaps_s=[0.01, 0.02], lag=0.001),
    sample(1.0, first_at=1.3, end=1.4, tokens=31, gaps_s=[0.03]),
    sample(2.0, end=2.1, error="status 503"),
    sample(2.5, end=2.6, cancelled=True),
    sample(3.0, first_at=3.2, end=4.0, tokens=40),
)


def test_figures_by_hand() -> None:
    found = {figure.figure: figure.value for figure in figures(RUN, "command")}
    assert found == pytest.approx(
        {
            "requests": 5,
            "failed": 0.2,
            "failed: status 503": 1,
            "cancelled": 1,
            "answered": 0.75,  # 3 within 4 s
            "latency p50": 400,
            "latency p90": 1000,
            "latency p99": 1000,
            "first content p50": 200,
            "first content p99": 300,
            "between chunks p50": 20,
            "between chunks p99": 30,
            "per token p50": 1.0,  # 30 ms by 30 steps; the other's 30 ms by 9
            "tokens": 20.25,
            "tokens an answer": 27,
            "generator's own lag p50": 0,
            "generator's own lag p99": 1,
        }
    )


def test_rewards_are_those_of_the_records() -> None:
    records = [
        Alignment(method="best_of_n", best_of=4, rewards=(1.0, 0.5), reward_mean=0.25, usage=Usage(3, 12)),
        Alignment(method="best_of_n", best_of=4, rewards=(2.0,), reward_mean=1.5),
        Alignment(method="best_of_n", best_of=4, rewards=(None,), degraded="reward_unavailable"),
    ]
    found = values(stage(*(sample(0.0, end=1.0, alignment=record) for record in records), sample(0, end=1)))
    assert (found["reward_mean"], found["reward_gain"]) == (1.5, 0.625)
    assert found["degraded_share"] == pytest.approx(1 / 3)


def test_scores_of_a_reward_server_are_rewards() -> None:
    assert values(stage(sample(0, end=1, scores=[1.0, 2.0]), sample(0, end=1, scores=[6.0])))[
        "reward_mean"
    ] == pytest.approx(3.0)


def test_what_a_run_has_none_of_is_nan_and_not_shown_unless_a_threshold_wants_it() -> None:
    one = stage(sample(0.0, end=1.0))
    assert math.isnan(values(one)["first_content_p99_ms"])
    assert not any("first content" in figure.figure for figure in figures(one, ""))
    limit = Threshold("first_content_p99_ms", "at_most", 5.0)
    (figure,) = (figure for figure in figures(one, "", [limit]) if "first content" in figure.figure)
    assert (figure.target, figure.met) == ("<= 5", False)


def test_a_threshold_is_for_the_first_server_alone() -> None:
    limit = Threshold("latency_p99_ms", "at_most", 1500.0)
    met = {
        label: [figure.met for figure in figures(stage(sample(0, end=1), label=label), "", [limit], "2/s")]
        for label in (FIRST, SECOND)
    }
    assert [verdict for verdict in met[FIRST] if verdict is not None] == [True]
    assert set(met[SECOND]) == {None}


def test_a_run_that_nobody_answered_has_figures_too() -> None:
    lost = stage(sample(0.0, end=0.0, error="no connection"))
    assert values(lost)["error_share"] == 1.0
    assert failures(lost) == {"no connection": 1}
    assert math.isnan(values(lost)["latency_p99_ms"])
    assert values(stage())["requests"] == 0


def test_figures_say_whose_they_are_and_that_they_are_noisy() -> None:
    found = figures(stage(sample(0, end=1), noisy=True), "the command", name="2/s, first")
    assert {figure.noisy for figure in found} == {True}
    assert {figure.command for figure in found} == {"the command"}
    assert all(figure.figure.endswith(" at 2/s, first") for figure in found)
