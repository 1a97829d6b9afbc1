"""From scores to advantages, as pure functions: what an online method learns from its episodes.

Shapes: E episodes, L tokens of the longest response; `mask_EL` is true where a response has a token, and what
stands elsewhere is 0 and stays 0. Log-probabilities are those at the sampling temperature, in nats.
"""

import torch

from trainers.losses import MAX_LOG_RATIO


def kl_per_token(
    logprobs_EL: torch.Tensor, reference_logprobs_EL: torch.Tensor, estimator: str
) -> torch.Tensor:
    """Estimates KL(policy || reference) at each sampled token: nats per token (Schulman 2020).

    `k1` is log pi - log ref: unbiased, of either sign. `k3` is ref/pi - 1 - log(ref/pi): unbiased too, never
    negative, and of less variance where the two are near.
    """
    log_ratios_EL = logprobs_EL - reference_logprobs_EL
    if estimator == "k1":
        return log_ratios_EL
    back_EL = (-log_ratios_EL).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(back_EL) - back_EL


def adapt_kl_coef(
    kl_coef: float, kl_nats_per_sequence: float, target: float, num_episodes: int, horizon_episodes: float
) -> float:
    """The next KL coefficient: coef * (1 + clip(KL / target - 1, -0.2, 0.2) * episodes / horizon).

    Ziegler et al. 2019, section 2.2, with their code's horizon in place of a gain of 0.1 per step. KL and
    target are sums over a response, in nats per sequence.
    """
    error = min(max(kl_nats_per_sequence / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * num_episodes / horizon_episodes)


def token_rewards(
    scores_E: torch.Tensor, kl_EL: torch.Tensor, mask_EL: torch.Tensor, kl_coef: float
) -> torch.Tensor:
    """-kl_coef * KL at every token, and the score at the last token of the response: (E, L).

    Ziegler et al. 2019, eq. 2. The last token is the end token where there is one.
    """
    rewards_EL = -kl_coef * kl_EL * mask_EL
    last_E1 = mask_EL.sum(-1, keepdim=True) - 1
    return rewards_EL.scatter_add(1, last_E1, scores_E[:, None])


def gae(
    rewards_EL: torch.Tensor, values_EL: torch.Tensor, mask_EL: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimates, and returns (advantages + values): (E, L) each.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1} (Schulman et al. 2016, eq. 16),
    where V_t is the value before token t, and both are 0 after the last.
    """
    advantages_EL = torch.zeros_like(rewards_EL)
    next_value_E = next_advantage_E = torch.zeros_like(rewards_EL[:, 0])
    for at in reversed(range(rewards_EL.shape[1])):
        delta_E = rewards_EL[:, at] + gamma * next_value_E - values_EL[:, at]
        next_advantage_E = (delta_E + gamma * lam * next_advantage_E) * mask_EL[:, at]
        next_value_E = values_EL[:, at] * mask_EL[:, at]
        advantages_EL[:, at] = next_advantage_E
    return advantages_EL, (advantages_EL + values_EL) * mask_EL


def whiten(values_EL: torch.Tensor, mask_EL: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """Scales the masked values to variance 1 and, with `shift_mean`, shifts them to mean 0.

    The variance is over all tokens of the batch, with Bessel's correction. Advantages are shifted; rewards
    are not (`shift_mean=False`), for their sign says what is good.
    """
    values_N = values_EL[mask_EL]
    mean = values_N.mean()
    variance = values_N.var() if len(values_N) > 1 else torch.zeros_like(mean)
    whitened_EL = (values_EL - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened_EL if shift_mean else whitened_EL + mean) * mask_EL


def less_baseline(objectives_PK: torch.Tensor, baseline: str) -> torch.Tensor:
    """Advantages of K answers to each of P prompts: (P, K).

    `leave_one_out` takes off the mean of the other answers to the prompt, r_i - mean_{j != i} r_j (RLOO,
    Ahmadian et al. 2024), `batch` that of all other answers, `none` nothing. A baseline that does not
    know the answer it is for leaves the gradient unbiased.
    """
    if baseline == "none":
        return objectives_PK
    groups_GK = objectives_PK if baseline == "leave_one_out" else objectives_PK.reshape(1, -1)
    others_GK = (groups_GK.sum(1, keepdim=True) - groups_GK) / (groups_GK.shape[1] - 1)
    return (groups_GK - others_GK).view_as(objectives_PK)


def best_rows(objectives_PK: torch.Tensor, top_k: int) -> list[int]:
    """The rows (prompt * K + answer) of the `top_k` best answers to each prompt, the best first; of equal
    ones the first.
    """
    order_PK = objectives_PK.argsort(dim=1, descending=True, stable=True)
    starts_P1 = torch.arange(len(order_PK), device=order_PK.device)[:, None] * order_PK.shape[1]
    return [int(row) for row in (order_PK[:, :top_k] + starts_P1).flatten()]


def explained_variance(returns_N: torch.Tensor, values_N: torch.Tensor) -> torch.Tensor:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect value model, 0 for one that knows nothing."""
    return 1 - (returns_N - values_N).var(correction=0) / returns_N.var(correction=0).clamp(min=1e-12)
