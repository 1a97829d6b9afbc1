"""Means and intervals, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.intervals import Mean, mean, paired_gain

values = st.lists(st.floats(-10, 10), min_size=2, max_size=50)


def test_by_hand() -> None:
    """1, 2, 3, 4: mean 2.5, variance 5/3, standard error sqrt(5/3 / 4) = 0.6455; 1.96 of it is 1.2652."""
    found = mean([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5
    assert found.ci95 == pytest.approx((1.2348, 3.7652), abs=1e-4)


def test_a_paired_gain_is_the_mean_of_the_differences() -> None:
    """Gains 1, 1, 3: mean 5/3, standard deviation sqrt(4/3), standard error 2/3."""
    found = paired_gain([2.0, 6.0, 13.0], [1.0, 5.0, 10.0])
    assert found.mean == pytest.approx(5 / 3)
    assert found.ci95 == pytest.approx((5 / 3 - 1.96 * 2 / 3, 5 / 3 + 1.96 * 2 / 3))


def test_pairing_sees_what_the_means_alone_do_not() -> None:
    """Prompts differ much, the gain little: paired it is clear, and unpaired it would drown."""
    before = [float(10 * n) for n in range(20)]
    after = [value + 0.5 + 0.01 * (n % 2) for n, value in enumerate(before)]
    assert paired_gain(after, before).clearly_positive
    assert mean(after).ci95[0] < mean(before).ci95[1]


def test_clearly_positive_means_the_whole_interval() -> None:
    assert Mean(0.5, (0.1, 0.9)).clearly_positive
    assert not Mean(0.5, (-0.1, 1.1)).clearly_positive
    assert not Mean(0.5, (0.0, 1.0)).clearly_positive


@given(values)
def test_nothing_is_gained_over_oneself(found: list[float]) -> None:
    assert paired_gain(found, found) == Mean(0.0, (0.0, 0.0))


@given(values)
def test_the_interval_holds_the_mean(found: list[float]) -> None:
    low, high = mean(found).ci95
    assert low <= mean(found).mean <= high


def test_too_few_or_unequal() -> None:
    with pytest.raises(ValueError, match="at least two"):
        mean([1.0])
    with pytest.raises(ValueError, match="zip"):
        paired_gain([1.0, 2.0], [1.0])
