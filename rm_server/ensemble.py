"""How the members of an ensemble become one reward: pure mathematics (Coste et al. 2023, arXiv 2310.02743).

    mean                    1/k sum_i R_i
    worst                   min_i R_i
    uncertainty_weighted    1/k sum_i R_i - lambda (1/k sum_i R_i^2 - (1/k sum_i R_i)^2)

The variance is that of the k members themselves (divided by k, as in the paper), and the spread is its root.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

Method: TypeAlias = Literal["mean", "worst", "uncertainty_weighted"]

UNCERTAINTY_LAMBDA = 0.5
"""The paper's for best-of-N; for PPO it takes 0.1."""


def combine(members: Sequence[float | None], method: Method, uncertainty_lambda: float) -> float | None:
    """One reward of the members' rewards of one response; None where a member has none."""
    rewards = _all(members)
    if rewards is None:
        return None
    if method == "worst":
        return min(rewards)
    mean = math.fsum(rewards) / len(rewards)
    if method == "mean":
        return mean
    return mean - uncertainty_lambda * _variance(rewards)


def spread(members: Sequence[float | None]) -> float | None:
    """The standard deviation of the members' rewards of one response; None where a member has none."""
    rewards = _all(members)
    return None if rewards is None else math.sqrt(_variance(rewards))


def _variance(rewards: Sequence[float]) -> float:
    mean = math.fsum(rewards) / len(rewards)
    return math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards)


def _all(members: Sequence[float | None]) -> list[float] | None:
    rewards = [reward for reward in members if reward is not None]
    return rewards if len(rewards) == len(members) else None
