"""Ensembles by hand, and what must hold for any members."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_server.ensemble import UNCERTAINTY_LAMBDA, combine, spread

REWARDS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=7)


def test_by_hand() -> None:
    # 1, 3, 8: mean 4; squared distances 9, 1, 16, so the variance is 26 / 3 and 4 - 26 / 6 = -1/3.
    members = [1.0, 3.0, 8.0]
    assert combine(members, "mean", 0.5) == 4.0
    assert combine(members, "worst", 0.5) == 1.0
    assert combine(members, "uncertainty_weighted", 0.5) == pytest.approx(-1 / 3)
    assert combine(members, "uncertainty_weighted", 0.0) == 4.0
    assert spread(members) == pytest.approx(math.sqrt(26 / 3))


def test_lambda_is_the_papers_for_best_of_n() -> None:
    assert UNCERTAINTY_LAMBDA == 0.5


@pytest.mark.parametrize("method", ["mean", "worst", "uncertainty_weighted"])
def test_a_member_without_a_reward_leaves_none(method: str) -> None:
    assert combine([1.0, None], method, 0.5) is None  # type: ignore[arg-type]  # a parameter is a str to mypy
    assert spread([1.0, None]) is None


@given(REWARDS)
def test_the_worst_is_below_the_mean_and_doubt_never_adds(members: list[float]) -> None:
    mean, worst = combine(members, "mean", 0.5), combine(members, "worst", 0.5)
    doubted = combine(members, "uncertainty_weighted", 0.5)
    assert mean is not None
    assert worst is not None
    assert doubted is not None
    assert worst <= mean + 1e-9 * abs(mean)
    assert doubted <= mean


@given(st.floats(-1e6, 1e6), st.integers(1, 7))
def test_members_that_agree_are_one(reward: float, count: int) -> None:
    members = [reward] * count
    assert spread(members) == pytest.approx(0, abs=1e-9)
    for method in ("mean", "worst", "uncertainty_weighted"):
        assert combine(members, method, 0.5) == pytest.approx(reward)
