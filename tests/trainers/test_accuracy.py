"""Shares, intervals and slices against arithmetic done by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers import accuracy
from trainers.accuracy import Judged, bucket_of, buckets, wilson
from trainers.data import ChoiceTokens, PairTokens, Tokens

ONE = Judged(right=True, confidence=0.75, candidates=2, length=10, longer="best", margin=0.0, source="crowd")


def by_slice(summary: dict[str, Any], name: str) -> dict[str, tuple[int, float]]:
    return {part["slice"]: (part["preferences"], part["accuracy"]) for part in summary["by"][name]}


def test_wilson_by_hand() -> None:
    # 8 of 10: z^2 = 3.841459; middle (0.8 + 0.192073) / 1.384146 = 0.716740,
    # half 1.959964 * sqrt(0.016 + 0.009604) / 1.384146 = 0.226578.
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_its_share_and_stays_a_share(counts: tuple[int, int]) -> None:
    low, high = wilson(*counts)
    assert 0 <= low <= counts[0] / counts[1] + 1e-12
    assert counts[0] / counts[1] - 1e-12 <= high <= 1


def test_quarters_have_like_sizes() -> None:
    assert buckets(range(1, 101)) == (1, 26, 51, 76, 100)
    assert buckets([5, 5, 5, 5, 9]) == (5, 9)
    assert buckets([3]) == (3,)


@given(st.lists(st.integers(-50, 50), min_size=1))
def test_every_value_has_its_bucket(values: list[int]) -> None:
    edges = buckets(values)
    for value in values:
        low, _, high = bucket_of(value, edges).partition(" to ")
        assert float(low) <= value <= float(high or low)


def test_slices_and_the_calibration_error_by_hand() -> None:
    judged = [
        ONE,
        replace(ONE, right=False, length=20, longer="another"),
        replace(ONE, confidence=0.95, length=30, source="staff"),
        replace(ONE, confidence=0.95, length=40, source="staff", candidates=4),
    ]
    summary = accuracy.summarize(judged)
    assert (summary["preferences"], summary["accuracy"], summary["confidence"]) == (4, 0.75, 0.85)
    assert by_slice(summary, "source") == {"crowd": (2, 0.5), "staff": (2, 1.0)}
    assert by_slice(summary, "longer") == {"another": (1, 0.0), "best": (3, 1.0)}
    assert by_slice(summary, "candidates") == {"2": (3, 2 / 3), "4": (1, 1.0)}
    assert by_slice(summary, "confidence") == {"0.7 to 0.8": (2, 0.5), "0.9 to 1": (2, 1.0)}
    assert list(by_slice(summary, "length")) == ["10 to 20", "20 to 30", "30 to 40"]
    # Accuracy 0.5 at confidence 0.75, and 1 at 0.95: (2 * 0.25 + 2 * 0.05) / 4.
    assert summary["expected_calibration_error"] == pytest.approx(0.15)
    assert "margin" not in summary["by"]


def test_margins_are_a_slice_where_the_data_have_them() -> None:
    summary = accuracy.summarize([ONE, replace(ONE, margin=2.0, right=False)])
    assert by_slice(summary, "margin") == {"0 to 2": (2, 0.5)}


def test_a_preference_is_judged_by_its_rewards() -> None:
    pair = PairTokens(Tokens([1] * 5, []), Tokens([1] * 7, []), 1.5, 0, "crowd")
    wrong = accuracy._judge(pair, torch.tensor([0.0, math.log(3)]))
    assert wrong == replace(
        ONE, right=False, length=7, longer="another", margin=1.5, confidence=wrong.confidence
    )
    assert wrong.confidence == pytest.approx(0.75)
    choice = ChoiceTokens([Tokens([1] * 3, [])] * 3, 0.0, "staff")
    right = accuracy._judge(choice, torch.tensor([math.log(2), 0.0, 0.0]))
    assert (right.right, right.candidates, right.longer) == (True, 3, "as long")
    assert right.confidence == pytest.approx(0.5)


def test_equal_rewards_are_no_right_answer() -> None:
    pair = PairTokens(Tokens([1], []), Tokens([2], []), 0.0, 0)
    assert not accuracy._judge(pair, torch.tensor([1.0, 1.0])).right
