"""What a calibration says of a score, and that its false alarms are as many as it promises."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_server.calibration import (
    Calibration,
    Distribution,
    Stored,
    read_calibration,
    read_distribution,
    read_stored,
)

STORED: dict[str, Any] = {
    "samples": 2000,
    "mean": 0.0,
    "std": 1.0,
    "quantiles": {"0.999": 3.0, "0.001": -3.0, "0.5": 0.0},  # in any order
    "raw_mean": 7.0,
    "source": "training",
}
SCORES = Distribution(2000, 0.0, 1.0, (0.001, 0.5, 0.999), (-3.0, 0.0, 3.0))
SPREAD = Distribution(2000, 0.4, 0.2, (0.5, 0.99), (0.4, 1.0))


def test_reads_what_the_trainer_stores() -> None:
    assert read_distribution(STORED) == SCORES
    assert read_calibration(STORED) == Calibration({"mean": SCORES})
    assert read_calibration(None) is None


def test_reads_what_the_command_stores() -> None:
    spread = {"samples": 2000, "mean": 0.4, "std": 0.2, "quantiles": {"0.5": 0.4, "0.99": 1.0}}
    stored = {"version": "a+b", "uncertainty_lambda": 0.5, "scores": {"worst": STORED}, "spread": spread}
    assert read_stored(stored) == Stored("a+b", 0.5, Calibration({"worst": SCORES}, SPREAD))
    assert read_stored(stored | {"spread": None}) == Stored("a+b", 0.5, Calibration({"worst": SCORES}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 0},
        {"samples": "many"},
        {"std": -1.0},
        {"mean": float("nan")},
        {"quantiles": {}},
        {"quantiles": [1, 2]},
        {"quantiles": {"0.1": 1.0, "0.2": 0.0}},
        {"quantiles": {"0.1": 1.0, "x": 2.0}},
        {"quantiles": {"0.1": None}},
        {"quantiles": {"1.5": 2.0}},
        {"quantiles": {"0.5": float("inf")}},
    ],
)
def test_refuses_what_is_no_distribution(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a distribution of scores"):
        read_distribution(STORED | wrong)


@pytest.mark.parametrize(
    "wrong", [None, [], {}, {"version": "a"}, {"version": "a", "uncertainty_lambda": 1, "scores": []}]
)
def test_refuses_what_the_command_did_not_store(wrong: Any) -> None:
    with pytest.raises(ValueError, match="not a stored calibration"):
        read_stored(wrong)


@pytest.mark.parametrize(
    ("score", "level", "outside"),
    [
        (-3.1, 0.001, True),
        (-3.0, 0.001, False),
        (0.0, 0.5, False),
        (1.5, 0.5 + 0.499 / 2, False),  # halfway between two quantiles
        (3.0, 0.999, False),
        (3.1, 0.999, True),
    ],
)
def test_where_a_score_lies(score: float, level: float, outside: bool) -> None:
    assert SCORES.level(score) == pytest.approx(level)
    assert SCORES.outside(score) is outside


def test_nothing_is_said_without_the_quantiles_that_the_rule_needs() -> None:
    narrow = Distribution(100, 0.0, 1.0, (0.01, 0.99), (-2.0, 2.0))
    assert narrow.outside(99.0) is None
    assert narrow.level(99.0) == 0.99
    assert SCORES.too_wide(99.0) is None
    calibration = Calibration({"mean": narrow})
    assert calibration.doubts("mean", [99.0], [None]) is None
    assert calibration.levels("mean", [99.0, None]) == [0.99, None]
    assert calibration.levels("worst", [99.0]) is None


def test_a_response_is_doubted_for_its_score_or_its_spread() -> None:
    calibration = Calibration({"mean": SCORES}, SPREAD)
    scores = [0.0, 9.0, 0.0, None]
    assert calibration.doubts("mean", scores, [0.5, 0.5, 1.5, None]) == [False, True, True, None]
    # of another method only the spread is known
    assert calibration.doubts("worst", scores, [0.5, 0.5, 1.5, None]) == [False, False, True, None]


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.floats(-100, 100), st.floats(-100, 100))
def test_a_higher_score_lies_no_lower(values: list[float], one: float, other: float) -> None:
    levels = tuple((k + 1) / (len(values) + 1) for k in range(len(values)))
    known = Distribution(99, 0.0, 1.0, levels, tuple(sorted(values)))
    low, high = sorted((one, other))
    assert levels[0] <= known.level(low) <= known.level(high) <= levels[-1]


def test_false_alarms_are_as_many_as_promised() -> None:
    """Of what comes from the distribution itself, whatever it is: here a skewed one."""
    drawn = random.Random(0)
    alarms = trials = 0
    for _ in range(100):
        known = sorted(drawn.expovariate(1) for _ in range(999))
        # Weibull's quantiles 0.001 and 0.999 of 999 samples: the first and the last.
        calibrated = Distribution(999, 1.0, 1.0, (0.001, 0.999), (known[0], known[-1]))
        alarms += sum(bool(calibrated.outside(drawn.expovariate(1))) for _ in range(1000))
        trials += 1000
    assert alarms / trials == pytest.approx(0.002, abs=0.0006)  # 2 / (n + 1); the deviation is 0.0002
