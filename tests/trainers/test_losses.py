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


def test_choice_by_hand() -> None:
    # Rewards ln 6, ln 3, ln 1 and 0: of 11 in all the best has 6, so ln(11 / 6) = 0.606136. With a margin
    # of ln 2 the best counts for 3 of 8: 0.980829.
    rewards_CK = t(math.log(6), math.log(3), 0.0, 0.0).expand(2, 4)
    values_C = losses.choice(rewards_CK, t(0.0, math.log(2)))
    assert values_C.tolist() == pytest.approx([0.6061358036, 0.9808292530])


def test_a_choice_of_two_is_bradley_terry_and_fillers_do_not_count() -> None:
    chosen, rejected, margins = t(2.0, 0.5, 1.0), t(1.0, 0.5, 2.0), t(0.0, 0.0, 1.0)
    filled_CK = torch.stack([chosen, rejected, torch.full_like(chosen, -math.inf)], dim=1)
    filled_CK.requires_grad_()
    values_C = losses.choice(filled_CK, margins)
    assert values_C.tolist() == pytest.approx(losses.bradley_terry(chosen, rejected, margins).tolist())
    values_C.sum().backward()
    assert filled_CK.grad is not None
    assert filled_CK.grad[:, 2].tolist() == [0.0, 0.0, 0.0]


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


def test_ipo_by_hand() -> None:
    # beta 0.1 wants h = 1 / 0.2 = 5: h = 1.5 costs 3.5^2 = 12.25, h = 5 nothing, h = 6 as much as h = 4.
    assert losses.ipo(t(1.5, 5.0, 6.0, 4.0), beta=0.1).tolist() == pytest.approx([12.25, 0.0, 1.0, 1.0])


def test_hinge_by_hand() -> None:
    # Target 1: a margin of 0.25 lacks 0.75, one of -2 lacks 3, one of 1.5 lacks nothing.
    assert losses.hinge(t(0.25, -2.0, 1.5), 1.0).tolist() == [0.75, 3.0, 0.0]


def test_a_pair_beyond_the_hinge_pulls_no_more() -> None:
    margins = torch.tensor([0.5, 2.0], requires_grad=True)
    losses.hinge(margins, 1.0).sum().backward()
    assert margins.grad is not None
    assert margins.grad.tolist() == [-1.0, 0.0]


def test_log_odds_by_hand() -> None:
    # p = 1/2: odds 1; p = 4/5: odds 4, ln 4 = 1.386294; p = 1/11: odds 1/10, -ln 10 = -2.302585.
    values_B = losses.log_odds(t(math.log(0.5), math.log(0.8), math.log(1 / 11)))
    assert values_B.tolist() == pytest.approx([0.0, 1.3862943611, -2.3025850930])


@pytest.mark.parametrize("logp", [0.0, -1e-9, -1e-4, -0.6931471805, -0.6931471806, -30.0, -1e4])
def test_log_odds_and_their_gradient_are_finite_anywhere(logp: float) -> None:
    logps = torch.tensor([logp], dtype=torch.float32, requires_grad=True)
    value = losses.log_odds(logps)
    value.sum().backward()
    assert logps.grad is not None
    assert value.isfinite().all()
    assert logps.grad.isfinite().all()


def test_odds_ratio_by_hand() -> None:
    # Odds 4 and 1: -ln sigmoid(ln 4) = -ln(4 / 5) = 0.223144. The other way round: -ln(1 / 5) = 1.609438.
    values_B = losses.odds_ratio(t(math.log(0.8), math.log(0.5)), t(math.log(0.5), math.log(0.8)))
    assert values_B.tolist() == pytest.approx([0.2231435513, 1.6094379124])


def test_the_clipped_policy_objective_by_hand() -> None:
    # Ratios 2, 1/2 and 1, clipped to [0.8, 1.2]; each with an advantage of 3 and of -3:
    # max(-6, -3.6), max(6, 3.6); max(-1.5, -2.4), max(1.5, 2.4); -3, 3.
    ratios = t(2.0, 2.0, 0.5, 0.5, 1.0, 1.0)
    advantages = t(3.0, -3.0, 3.0, -3.0, 3.0, -3.0)
    values = losses.clipped_policy(ratios.log() - 7, torch.full_like(ratios, -7.0), advantages, 0.2)
    assert values.tolist() == pytest.approx([-3.6, 6.0, -1.5, 2.4, -3.0, 3.0])


def test_the_clipped_policy_objective_pushes_only_inside_the_clip() -> None:
    # The gradient of -A rho by log pi is -A rho; where the clip holds, 0.
    logps = t(2.0, 2.0, 1.0).log().requires_grad_()
    losses.clipped_policy(logps, torch.zeros(3), t(3.0, -3.0, 3.0), 0.2).sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx([0.0, 6.0, -3.0])


def test_a_ratio_that_would_overflow_stays_finite() -> None:
    values = losses.clipped_policy(
        torch.tensor([500.0, -500.0]), torch.zeros(2), torch.tensor([-1.0, -1.0]), 0.2
    )
    assert bool(values.isfinite().all())


def test_the_clipped_value_error_by_hand() -> None:
    # Old values 0, clip 0.2. V = 1, R = 2: max(1, 3.24) / 2. V = 1, R = 0: max(1, 0.04) / 2.
    # V = 0.1 is inside: 0.5 * (0.1 - 2)^2 = 1.805. V = -1, R = -0.5: max(0.25, 0.09) / 2.
    values_N = losses.clipped_value(t(1.0, 1.0, 0.1, -1.0), torch.zeros(4), t(2.0, 0.0, 2.0, -0.5), 0.2)
    assert values_N.tolist() == pytest.approx([1.62, 0.5, 1.805, 0.125])
