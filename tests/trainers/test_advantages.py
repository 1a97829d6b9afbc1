"""Advantages, whitening and the KL coefficient, by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.advantages import (
    adapt_kl_coef,
    best_rows,
    explained_variance,
    gae,
    kl_per_token,
    less_baseline,
    token_rewards,
    whiten,
)

MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_both_estimates_of_the_kl() -> None:
    # pi / ref = 2: k1 = ln 2; k3 = 1/2 - 1 + ln 2.
    logprobs, reference = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.25)]])
    assert kl_per_token(logprobs, reference, "k1").item() == pytest.approx(0.693147, abs=1e-6)
    assert kl_per_token(logprobs, reference, "k3").item() == pytest.approx(0.193147, abs=1e-6)
    far = kl_per_token(torch.tensor([[-200.0]]), torch.tensor([[0.0]]), "k3")
    assert bool(far.isfinite().all())


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_both_estimates_are_unbiased(estimator: str) -> None:
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    exact = float((policy * (policy / reference).log()).sum())
    estimates = kl_per_token(policy.log()[None], reference.log()[None], estimator)[0]
    assert float((policy * estimates).sum()) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.6, 0.10 * (1 + 0.1 * 64 / 10_000)),  # a tenth above the target
        (60.0, 0.10 * (1 + 0.2 * 64 / 10_000)),  # far above: a fifth at most
        (0.0, 0.10 * (1 - 0.2 * 64 / 10_000)),
        (6.0, 0.10),
    ],
)
def test_the_kl_coefficient_adapts(kl: float, expected: float) -> None:
    assert adapt_kl_coef(0.10, kl, 6.0, 64, 10_000) == pytest.approx(expected, rel=1e-12)


def test_the_score_comes_with_the_last_token_and_the_kl_with_each() -> None:
    kl = torch.tensor([[1.0, -2.0, 3.0], [0.5, 7.0, 7.0]])
    rewards = token_rewards(torch.tensor([10.0, -4.0]), kl, MASK, 0.1)
    assert rewards.flatten().tolist() == pytest.approx([-0.1, 0.2, 9.7, -4.05, 0.0, 0.0])


def test_gae_by_hand() -> None:
    # gamma 0.9, lambda 0.5. Row 1: delta_3 = 4 - 3 = 1; delta_2 = 0 + 0.9 * 3 - 2 = 0.7;
    # delta_1 = 1 + 0.9 * 2 - 1 = 1.8. A_3 = 1; A_2 = 0.7 + 0.45 * 1 = 1.15; A_1 = 1.8 + 0.45 * 1.15 = 2.3175.
    # Row 2 has one token: 5 - 2 = 3, whatever stands behind it.
    rewards = torch.tensor([[1.0, 0.0, 4.0], [5.0, 0.0, 0.0]])
    values = torch.tensor([[1.0, 2.0, 3.0], [2.0, 9.0, 9.0]])
    advantages, returns = gae(rewards, values, MASK, 0.9, 0.5)
    assert advantages.tolist() == [pytest.approx([2.3175, 1.15, 1.0]), pytest.approx([3.0, 0.0, 0.0])]
    assert returns.tolist() == [pytest.approx([3.3175, 3.15, 4.0]), pytest.approx([5.0, 0.0, 0.0])]


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=6),
    st.floats(0, 1, width=32),
    st.floats(0, 1, width=32),
)
def test_gae_at_its_ends(rewards: list[float], value: float, gamma: float) -> None:
    """With lambda 1 a return is the discounted sum of what follows; with 0 it looks one token ahead."""
    rewards_1L = torch.tensor([rewards], dtype=torch.float64)
    values_1L = torch.full_like(rewards_1L, value)
    mask_1L = torch.ones_like(rewards_1L, dtype=torch.bool)
    _, all_the_way = gae(rewards_1L, values_1L, mask_1L, gamma, 1.0)
    _, one_ahead = gae(rewards_1L, values_1L, mask_1L, gamma, 0.0)
    for at in range(len(rewards)):
        sums = sum(reward * gamma**k for k, reward in enumerate(rewards[at:]))
        assert float(all_the_way[0, at]) == pytest.approx(sums, abs=1e-9)
        ahead = rewards[at] + (gamma * value if at + 1 < len(rewards) else 0)
        assert float(one_ahead[0, at]) == pytest.approx(ahead, abs=1e-9)


def test_whitening_by_hand() -> None:
    # 1, 2, 3 | 6: mean 3, variance with Bessel's correction (4 + 1 + 0 + 9) / 3 = 14 / 3.
    values = torch.tensor([[1.0, 2.0, 3.0], [6.0, 99.0, 99.0]])
    std = math.sqrt(14 / 3)
    centred = whiten(values, MASK)
    assert centred.tolist() == [
        pytest.approx([-2 / std, -1 / std, 0.0], abs=1e-6),
        pytest.approx([3 / std, 0, 0], abs=1e-6),
    ]
    scaled = whiten(values, MASK, shift_mean=False)
    assert scaled[MASK].tolist() == pytest.approx([3 - 2 / std, 3 - 1 / std, 3.0, 3 + 3 / std], abs=1e-5)
    assert scaled[~MASK].tolist() == [0.0, 0.0]


def test_one_token_is_whitened_to_nothing() -> None:
    assert whiten(torch.tensor([[5.0]]), torch.tensor([[True]])).item() == 0


def test_baselines_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    # 1 - (2 + 6) / 2 = -3, 2 - 3.5, 6 - 1.5 | 0 - 1.5, 0 - 1.5, 3 - 0
    assert less_baseline(rewards, "leave_one_out").tolist() == [[-3.0, -1.5, 4.5], [-1.5, -1.5, 3.0]]
    # 1 - 11 / 5, ..., 3 - 9 / 5
    expected = [-1.2, 0.0, 4.8, -2.4, -2.4, 1.2]
    assert less_baseline(rewards, "batch").flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert less_baseline(rewards, "none").tolist() == rewards.tolist()


def test_the_best_answers_of_each_prompt() -> None:
    rewards = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]])
    assert best_rows(rewards, 1) == [1, 3]
    assert best_rows(rewards, 2) == [1, 2, 3, 4]


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert explained_variance(returns, returns).item() == 1
    assert explained_variance(returns, torch.full((4,), 2.0)).item() == pytest.approx(0)
    # Errors -1, 0, 1, 0 have variance 1/2, returns 3.5.
    assert explained_variance(returns, torch.tensor([2.0, 2, 2, 6])).item() == pytest.approx(1 - 0.5 / 3.5)
