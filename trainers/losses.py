"""Every loss as a pure function: tensors in, one value for each example out. The caller takes the mean.

Shapes: B sequences (or pairs), N target tokens. log is the natural logarithm; all values are in nats.
"""

import torch
import torch.nn.functional as F


def sft_nll(logprobs_N: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each target token: -log pi(y_t | x, y_<t)."""
    return -logprobs_N


def bradley_terry(
    chosen_rewards_B: torch.Tensor, rejected_rewards_B: torch.Tensor, margins_B: torch.Tensor
) -> torch.Tensor:
    """-log sigmoid(r_w - r_l - m) of each pair (Ouyang et al. 2022, eq. 1; the margin: Touvron et al. 2023,
    eq. 2).

    In its softplus form, which stays finite where log(1 + exp(r_l - r_w)) overflows.
    """
    return F.softplus(-(chosen_rewards_B - rejected_rewards_B - margins_B))


def reward_centering(chosen_rewards_B: torch.Tensor, rejected_rewards_B: torch.Tensor) -> torch.Tensor:
    """(r_w + r_l)^2 of each pair, which keeps rewards around 0 (Eisenstein et al. 2023, eq. 2)."""
    return (chosen_rewards_B + rejected_rewards_B).square()


def dpo(
    policy_chosen_logps_B: torch.Tensor,
    policy_rejected_logps_B: torch.Tensor,
    reference_chosen_logps_B: torch.Tensor,
    reference_rejected_logps_B: torch.Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """-log sigmoid(beta h) of each pair, with h = (log pi_w - log pi_l) - (log ref_w - log ref_l).

    Rafailov et al. 2023, eq. 7. With label smoothing e, the conservative form of Mitchell 2023 (eq. 3):
    labels are taken to be flipped with probability e, -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h).
    """
    policy_logratios_B = policy_chosen_logps_B - policy_rejected_logps_B
    reference_logratios_B = reference_chosen_logps_B - reference_rejected_logps_B
    logits_B = beta * (policy_logratios_B - reference_logratios_B)
    return (1 - label_smoothing) * F.softplus(-logits_B) + label_smoothing * F.softplus(logits_B)
