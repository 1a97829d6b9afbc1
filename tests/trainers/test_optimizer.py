"""The learning rate by hand, and what weight decay touches."""

from typing import Any

import pytest
import torch

from trainers.config import RunConfig
from trainers.optimizer import learning_rate, make_optimizer


def rates(total: int, **settings: Any) -> list[float]:
    config = RunConfig(output_dir="o", learning_rate=1.0, **settings)
    return [learning_rate(config, step, total) for step in range(total)]


def test_linear_with_warmup_by_hand() -> None:
    # Two steps up, then four down to what would be 0 at step 6.
    assert rates(6, warmup_steps=2) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_cosine_by_hand() -> None:
    # (1 + cos(pi k / 4)) / 2
    assert rates(4, lr_scheduler_type="cosine") == pytest.approx([1.0, 0.85355339, 0.5, 0.14644661])


def test_constant_with_a_ratio_of_warmup() -> None:
    assert rates(4, lr_scheduler_type="constant", warmup_ratio=0.3) == [0.5, 1.0, 1.0, 1.0]


def test_a_number_of_steps_wins_over_the_ratio() -> None:
    assert rates(4, warmup_ratio=0.9, warmup_steps=1) == pytest.approx([1.0, 1.0, 2 / 3, 1 / 3])


def test_weight_decay_is_for_matrices(model: Any) -> None:
    optimizer = make_optimizer(model, RunConfig(output_dir="o", weight_decay=0.1))
    for group in optimizer.param_groups:
        assert all((parameter.ndim >= 2) == (group["weight_decay"] == 0.1) for parameter in group["params"])
    num_grouped = sum(len(group["params"]) for group in optimizer.param_groups)
    assert num_grouped == len(list(model.parameters()))


def test_a_companion_has_a_rate_of_its_own(model: Any) -> None:
    head = torch.nn.Linear(2, 1)
    optimizer = make_optimizer(model, RunConfig(output_dir="o"), head, companion_lr_scale=3.0)
    scales = [(group["lr_scale"], len(group["params"])) for group in optimizer.param_groups]
    num_matrices = sum(parameter.ndim >= 2 for parameter in model.parameters())
    num_others = len(list(model.parameters())) - num_matrices
    assert scales == [(1.0, num_matrices), (1.0, num_others), (3.0, 1), (3.0, 1)]
