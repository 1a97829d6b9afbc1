"""The sampler's log-probabilities held against the trainer's, where the sampler has a copy of the policy.

A copy that was not brought up to date, was loaded wrongly, or samples from another distribution teaches what
is not so, and no loss shows it. In float32 two programs that compute the same policy differ by about 1e-6
nats per token in the mean, in bfloat16 by 5e-3; a step of the demo's policy at a learning rate of 3e-6 moves
it by more than 1e-3. Forgotten steps that move it less than the bound add up.
"""

import torch

from trainers.episodes import Episodes
from trainers.errors import RolloutError

FLOAT32_BOUND = 1e-4
BFLOAT16_BOUND = 0.05
"""Nats per token: the largest mean difference, unless --vllm_logprob_bound says another."""


def sampled_logprobs(episodes: Episodes) -> torch.Tensor | None:
    """The sampler's log-probabilities of the sampled tokens: (E, L); None where it says none."""
    said = [episode.sample.logprobs for episode in episodes.episodes]
    if any(logprobs is None for logprobs in said):
        return None
    values_EL = torch.zeros(episodes.mask_EL.shape, device=episodes.device)
    values_N = [value for logprobs in said for value in logprobs or ()]
    values_EL[episodes.mask_EL] = torch.tensor(values_N, device=episodes.device)
    return values_EL


def check(difference_N: torch.Tensor, bound: float) -> None:
    """Raises RolloutError where the mean of the absolute differences, in nats, is above the bound."""
    mean = float(difference_N.double().mean())
    if not mean <= bound:
        raise RolloutError(
            f"vLLM's log-probabilities of what it sampled are {mean:.2g} nats per token off the trainer's "
            f"({float(difference_N.max()):.2g} at most), and --vllm_logprob_bound allows {bound:g}: it does "
            "not have the policy's weights, or not in the trainer's precision, or tells log-probabilities of "
            "another distribution"
        )
