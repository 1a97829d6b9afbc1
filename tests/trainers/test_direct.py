"""Each direct method on one batch, by hand."""

import math
from dataclasses import dataclass
from typing import get_args

import pytest
import torch

from trainers import direct, dpo
from trainers.direct import Pairs, Sides


@dataclass(frozen=True)
class Knobs:
    beta: float = 0.5
    label_smoothing: float = 0.0
    delta: float = 2.0
    sft_coef: float = 0.25


def sides(chosen: list[float], rejected: list[float]) -> Sides:
    return Sides(torch.tensor(chosen, dtype=torch.float64), torch.tensor(rejected, dtype=torch.float64))


PAIRS = Pairs(
    # Log-ratios to the reference: 1 and -1 (h = 2); -2 and -0.5 (h = -1.5).
    policy=sides([-4.0, -6.0], [-7.0, -2.0]),
    reference=sides([-5.0, -4.0], [-6.0, -1.5]),
    lengths=sides([2.0, 4.0], [4.0, 1.0]),
)
NO_REFERENCE = Pairs(PAIRS.policy, None, PAIRS.lengths)


def numbers(values: torch.Tensor) -> list[float]:
    return [float(value) for value in values]


def test_sigmoid() -> None:
    # beta h = 1 and -0.75: ln(1 + e^-1) = 0.313262, ln(1 + e^0.75) = 1.136871.
    outcome = direct.sigmoid(PAIRS, Knobs())
    assert numbers(outcome.values_B) == pytest.approx([0.3132616875, 1.1368710062])
    assert numbers(outcome.rewards.chosen_B) == [0.5, -1.0]
    assert numbers(outcome.rewards.rejected_B) == [-0.5, -0.25]


def test_conservative() -> None:
    # 0.8 * 0.313262 + 0.2 * 1.313262 = 0.513262; 0.8 * 1.136871 + 0.2 * 0.386871 = 0.986871.
    outcome = direct.sigmoid(PAIRS, Knobs(label_smoothing=0.2))
    assert numbers(outcome.values_B) == pytest.approx([0.5132616875, 0.9868710062])


def test_ipo_by_token() -> None:
    # Per token 1/2 and -1/4: h = 0.75; -1/2 and -1/2: h = 0. The target is 1 / (2 * 0.5) = 1.
    outcome = direct.ipo(PAIRS, Knobs())
    assert numbers(outcome.values_B) == pytest.approx([0.0625, 1.0])
    assert numbers(outcome.rewards.margins) == pytest.approx([0.375, 0.0])


def test_ipo_of_whole_answers() -> None:
    # h = 2 and -1.5 against a target of 1: 1 and 6.25.
    assert numbers(direct.ipo_sum(PAIRS, Knobs()).values_B) == pytest.approx([1.0, 6.25])


def test_hinge() -> None:
    # beta h = 1 is apart enough; -0.75 lacks 1.75.
    assert numbers(direct.hinge(PAIRS, Knobs()).values_B) == [0.0, 1.75]


def test_slic_hf() -> None:
    # Log-probabilities are 3 apart (delta 2: enough) and -4 (lacks 6); plus a quarter of 4 and 6 nats.
    outcome = direct.slic_hf(NO_REFERENCE, Knobs())
    assert numbers(outcome.values_B) == [0.0 + 1.0, 6.0 + 1.5]
    assert numbers(outcome.extra["nll_loss"]) == [4.0, 6.0]
    assert numbers(outcome.rewards.margins) == [3.0, -4.0]


def test_orpo() -> None:
    # Log-probabilities by token: ln 4/5 against ln 1/2, so odds 4 against 1: -ln(4 / 5) = ln 1.25 both for
    # the likelihood and for the odds ratio.
    pairs = Pairs(sides([2 * math.log(0.8)], [3 * math.log(0.5)]), None, sides([2.0], [3.0]))
    outcome = direct.orpo(pairs, Knobs())
    assert numbers(outcome.values_B) == pytest.approx([1.5 * math.log(1.25)])
    assert numbers(outcome.extra["nll_loss"]) == pytest.approx([math.log(1.25)])
    assert numbers(outcome.rewards.margins) == pytest.approx([0.5 * math.log(4)])


@pytest.mark.parametrize("name", direct.METHODS)
def test_every_method_pulls_the_sides_apart(name: str) -> None:
    """Of a pair in the wrong order, each gradient raises the chosen answer and lowers the rejected one."""
    policy = sides([-6.0], [-2.0])
    for side in (policy.chosen_B, policy.rejected_B):
        side.requires_grad_()
    reference = None if name in dpo.REFERENCE_FREE else sides([-4.0], [-1.5])
    outcome = direct.METHODS[name](Pairs(policy, reference, sides([3.0], [2.0])), Knobs())
    outcome.values_B.sum().backward()
    assert policy.chosen_B.grad is not None
    assert policy.rejected_B.grad is not None
    assert policy.chosen_B.grad.item() < 0 < policy.rejected_B.grad.item()


def test_what_is_reported() -> None:
    reported = direct.metrics(PAIRS, direct.sigmoid(PAIRS, Knobs()))
    assert numbers(reported["rewards/margins"]) == [1.0, -0.75]
    assert numbers(reported["rewards/accuracies"]) == [1.0, 0.0]
    assert numbers(reported["logps/rejected"]) == [-7.0, -2.0]


def test_the_flag_names_every_method_and_what_it_reads() -> None:
    names = get_args(dpo.Config.__annotations__["loss_type"])
    assert set(names) == set(direct.METHODS) == set(dpo.KNOBS)
    assert set(dpo.REFERENCE_FREE) < set(names)
