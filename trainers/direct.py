"""The direct methods by name: log-probabilities of pairs in, a loss and what to report of it out.

Each is one small function over a batch of `Pairs`. What it calls rewards is what it compares: a pair's
margin is the difference of its rewards, and a pair is in order where that is above 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from trainers import losses


@dataclass(frozen=True, slots=True)
class Sides:
    """One quantity of both answers of each pair."""

    chosen_B: torch.Tensor
    rejected_B: torch.Tensor

    def minus(self, other: "Sides") -> "Sides":
        """The difference, side by side."""
        return Sides(self.chosen_B - other.chosen_B, self.rejected_B - other.rejected_B)

    def over(self, other: "Sides") -> "Sides":
        """The quotient, side by side."""
        return Sides(self.chosen_B / other.chosen_B, self.rejected_B / other.rejected_B)

    def times(self, factor: float) -> "Sides":
        """A multiple."""
        return Sides(factor * self.chosen_B, factor * self.rejected_B)

    @property
    def margins(self) -> torch.Tensor:
        """Chosen less rejected: (B,)."""
        return self.chosen_B - self.rejected_B


@dataclass(frozen=True, slots=True)
class Pairs:
    """What a direct method sees of a batch."""

    policy: Sides
    """log pi of each answer: nats per sequence."""
    reference: Sides | None
    """The same under the frozen reference; None for a method that asks for none."""
    lengths: Sides
    """Tokens of each answer, the end-of-turn token included."""

    @property
    def log_ratios(self) -> Sides:
        """log pi - log ref of each answer: nats per sequence."""
        assert self.reference is not None
        return self.policy.minus(self.reference)


class Knobs(Protocol):
    """The settings that the methods read, each those that it knows."""

    @property
    def beta(self) -> float: ...

    @property
    def label_smoothing(self) -> float: ...

    @property
    def delta(self) -> float: ...

    @property
    def sft_coef(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a method makes of a batch."""

    values_B: torch.Tensor
    rewards: Sides
    extra: dict[str, torch.Tensor]
    """More metrics, of this method alone."""


def sigmoid(pairs: Pairs, knobs: Knobs) -> Outcome:
    """DPO (Rafailov et al. 2023); with label smoothing, conservative DPO (Mitchell 2023)."""
    assert pairs.reference is not None
    values_B = losses.dpo(
        pairs.policy.chosen_B,
        pairs.policy.rejected_B,
        pairs.reference.chosen_B,
        pairs.reference.rejected_B,
        knobs.beta,
        knobs.label_smoothing,
    )
    return Outcome(values_B, pairs.log_ratios.times(knobs.beta), {})


def ipo(pairs: Pairs, knobs: Knobs) -> Outcome:
    """IPO over log-ratios per token: TRL's form, by which an answer's length does not count."""
    log_ratios = pairs.log_ratios.over(pairs.lengths)
    return Outcome(losses.ipo(log_ratios.margins, knobs.beta), log_ratios.times(knobs.beta), {})


def ipo_sum(pairs: Pairs, knobs: Knobs) -> Outcome:
    """IPO over log-ratios of whole answers: the paper's form (Azar et al. 2023)."""
    log_ratios = pairs.log_ratios
    return Outcome(losses.ipo(log_ratios.margins, knobs.beta), log_ratios.times(knobs.beta), {})


def hinge(pairs: Pairs, knobs: Knobs) -> Outcome:
    """The hinge on DPO's margin (RSO's hinge-norm, Liu et al. 2023)."""
    rewards = pairs.log_ratios.times(knobs.beta)
    return Outcome(losses.hinge(rewards.margins, 1.0), rewards, {})


def slic_hf(pairs: Pairs, knobs: Knobs) -> Outcome:
    """SLiC-HF (Zhao et al. 2023): a hinge on log-probabilities, and likelihood of the chosen answer to hold
    the policy where a reference would.
    """
    nll_B = -pairs.policy.chosen_B
    values_B = losses.hinge(pairs.policy.margins, knobs.delta) + knobs.sft_coef * nll_B
    return Outcome(values_B, pairs.policy, {"nll_loss": nll_B})


def orpo(pairs: Pairs, knobs: Knobs) -> Outcome:
    """ORPO (Hong et al. 2024, eq. 6): likelihood of the chosen answer per token, and beta (its lambda) times
    the odds ratio.
    """
    mean_logps = pairs.policy.over(pairs.lengths)
    nll_B = -mean_logps.chosen_B
    values_B = nll_B + knobs.beta * losses.odds_ratio(mean_logps.chosen_B, mean_logps.rejected_B)
    odds = Sides(losses.log_odds(mean_logps.chosen_B), losses.log_odds(mean_logps.rejected_B))
    return Outcome(values_B, odds.times(knobs.beta), {"nll_loss": nll_B})


Method = Callable[[Pairs, Knobs], Outcome]
METHODS: dict[str, Method] = {
    "sigmoid": sigmoid,
    "ipo": ipo,
    "ipo_sum": ipo_sum,
    "hinge": hinge,
    "slic_hf": slic_hf,
    "orpo": orpo,
}


def metrics(pairs: Pairs, outcome: Outcome) -> dict[str, torch.Tensor]:
    """What is reported of a batch: values for each pair, by name."""
    margins_B = outcome.rewards.margins
    return {
        "rewards/chosen": outcome.rewards.chosen_B,
        "rewards/rejected": outcome.rewards.rejected_B,
        "rewards/margins": margins_B,
        "rewards/accuracies": (outcome.rewards.chosen_B > outcome.rewards.rejected_B).float(),
        "logps/chosen": pairs.policy.chosen_B,
        "logps/rejected": pairs.policy.rejected_B,
    } | outcome.extra
