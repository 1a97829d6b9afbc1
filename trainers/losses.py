"""Every loss as a pure function: tensors in, one value for each example out. The caller takes the mean.

Shapes: B sequences (or pairs), N target tokens. log is the natural logarithm; all values are in nats.
"""

import math

import torch
import torch.nn.functional as F

MAX_LOG_RATIO = 20.0
"""Log-ratios are kept within this before exp, which would overflow at 89 in float32."""


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


def choice(rewards_CK: torch.Tensor, margins_C: torch.Tensor) -> torch.Tensor:
    """-log softmax(r_1 - m, r_2, ..., r_K)[1] of each choice, the best candidate in column 0.

    Ziegler et al. 2019, eq. 1, which has K = 4 and no margin; of K = 2 it is `bradley_terry`. Choices of
    fewer candidates are filled up with minus infinity.
    """
    best_C = rewards_CK[:, 0] - margins_C
    all_CK = torch.cat([best_C[:, None], rewards_CK[:, 1:]], dim=1)
    return all_CK.logsumexp(dim=1) - best_C


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


def ipo(log_ratios_B: torch.Tensor, beta: float) -> torch.Tensor:
    """(h - 1 / (2 beta))^2 of each pair, with h = (log pi_w - log pi_l) - (log ref_w - log ref_l).

    Azar et al. 2023, eq. 17, whose tau is beta here. It stops pulling once h is 1 / (2 beta), where DPO
    would go on for as long as it can.
    """
    return (log_ratios_B - 1 / (2 * beta)).square()


def hinge(margins_B: torch.Tensor, target: float) -> torch.Tensor:
    """max(0, target - margin) of each pair: nothing more is learned from a pair that is apart enough.

    The calibration loss of SLiC-HF (Zhao et al. 2023) where the margin is log pi_w - log pi_l and the
    target its delta; RSO's hinge-norm (Liu et al. 2023) where it is beta h, as in `dpo`, and the target 1.
    """
    return F.relu(target - margins_B)


def log_odds(mean_logps_B: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) with p = exp(log-probability per token) (Hong et al. 2024, eq. 4).

    p is kept below 1 by the precision of its type: of a certain answer the odds are large, not infinite.
    """
    logps_B = mean_logps_B.clamp(max=-torch.finfo(mean_logps_B.dtype).eps)
    # log(1 - e^x): near 0 by expm1, far from it by log1p, each exact where the other cancels.
    log_complement_B = torch.where(
        logps_B > -math.log(2), torch.log(-torch.expm1(logps_B)), torch.log1p(-torch.exp(logps_B))
    )
    return logps_B - log_complement_B


def odds_ratio(chosen_mean_logps_B: torch.Tensor, rejected_mean_logps_B: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(log odds_w - log odds_l) of each pair (Hong et al. 2024, ORPO, eq. 7)."""
    return F.softplus(log_odds(rejected_mean_logps_B) - log_odds(chosen_mean_logps_B))


def clipped_policy(
    logps: torch.Tensor, old_logps: torch.Tensor, advantages: torch.Tensor, cliprange: float
) -> torch.Tensor:
    """max(-A rho, -A clip(rho, 1 - e, 1 + e)) with rho = exp(log pi - log pi_old): PPO's clipped objective,
    negated (Schulman et al. 2017, eq. 7).

    Of tokens in PPO, of whole responses in RLOO. The log-ratio is kept within +-20 before exp.
    """
    log_ratios = (logps - old_logps).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratios = log_ratios.exp()
    return torch.maximum(-advantages * ratios, -advantages * ratios.clamp(1 - cliprange, 1 + cliprange))


def clipped_value(
    values_N: torch.Tensor, old_values_N: torch.Tensor, returns_N: torch.Tensor, cliprange: float
) -> torch.Tensor:
    """max((V - R)^2, (V_clipped - R)^2) / 2, V kept within `cliprange` of what it was at the rollout.

    Not in the paper, but in OpenAI's code from the first on (baselines; lm-human-preferences).
    """
    clipped_N = torch.maximum(torch.minimum(values_N, old_values_N + cliprange), old_values_N - cliprange)
    return 0.5 * torch.maximum((values_N - returns_N).square(), (clipped_N - returns_N).square())
