"""Every loss against arithmetic done by hand."""

import math

import pytest
import torch

from trainers import losses


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_sft_nll_is_minus_the_log_probability() -> None:
    # A token of probability 1/4 costs ln 4 = 1.386294 nats.
    values_N = losses.sft_nll(t(math.log(0.25), 0.0))
    assert values_N.tolist() == pytest.approx([1.3862943611, 0.0])


def test_bradley_terry_by_hand() -> None:
    # Rewards 2 and 1: -ln sigmoid(1) = ln(1 + e^-1) = 0.313262. Equal rewards: ln 2 = 0.693147.
    # Rewards 1 and 2 with margin 1: -ln sigmoid(-2) = ln(1 + e^2) = 2.126928.
    values_B = losses.bradley_terry(t(2.0, 0.5, 1.0), t(1.0, 0.5, 2.0), t(0.0, 0.0, 1.0))
    assert values_B.tolist() == pytest.approx([0.3132616875, 0.6931471806, 2.1269280110])


def test_bradley_terry_stays_finite_where_the_naive_form_overflows() -> None:
    chosen = torch.tensor([-500.0, 500.0], requires_grad=True)
    values_B = losses.bradley_terry(chosen, -chosen.detach(), torch.zeros(2))
    values_B.sum().backward()
    assert values_B.tolist() == [1000.0, 0.0]
    assert chosen.grad is not None
    assert chosen.grad.tolist() == [-1.0, 0.0]


def test_reward_centering_by_hand() -> None:
    # (1.5 + 0.5)^2 = 4; a pair around 0 costs nothing.
    assert losses.reward_centering(t(1.5, 2.0), t(0.5, -2.0)).tolist() == [4.0, 0.0]


def test_dpo_by_hand() -> None:
    # Policy log-ratio -10 - -12 = 2, reference log-ratio -11 - -11.5 = 0.5, so h = 1.5; beta 0.1:
    # -ln sigmoid(0.15) = ln(1 + e^-0.15) = 0.620957.
    values_B = losses.dpo(t(-10.0), t(-12.0), t(-11.0), t(-11.5), beta=0.1)
    assert values_B.tolist() == pytest.approx([0.6209570])


def test_dpo_is_ln_2_where_the_policy_is_the_reference() -> None:
    values_B = losses.dpo(t(-3.0, -7.0), t(-5.0, -1.0), t(-3.0, -7.0), t(-5.0, -1.0), beta=0.5)
    assert values_B.tolist() == pytest.approx([math.log(2)] * 2)


def test_conservative_dpo_mixes_both_labels() -> None:
    # beta h = 1: 0.9 * 0.313262 + 0.1 * 1.313262 = 0.413262.
    values_B = losses.dpo(t(-1.0), t(-2.0), t(0.0), t(0.0), beta=1.0, label_smoothing=0.1)
    assert values_B.tolist() == pytest.approx([0.4132616875])


def test_dpo_gradient_pushes_chosen_up_and_rejected_down_by_the_same() -> None:
    # d/d chosen = -beta sigmoid(-beta h) = -0.5 * 0.5 at h = 0.
    chosen, rejected = (torch.zeros(1, requires_grad=True) for _ in range(2))
    losses.dpo(chosen, rejected, torch.zeros(1), torch.zeros(1), beta=0.5).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad.item(), rejected.grad.item()) == (-0.25, 0.25)
