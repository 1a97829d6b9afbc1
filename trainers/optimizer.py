"""AdamW and its learning rate."""

import math
from typing import Any

import torch

from trainers.config import RunConfig


def make_optimizer(
    model: Any, config: RunConfig, companion: Any | None = None, companion_lr_scale: float = 1.0
) -> torch.optim.AdamW:
    """AdamW in one fused kernel; weight decay on matrices only.

    A companion (a value model) is trained beside the model, at a multiple of its learning rate.
    """
    groups = parameter_groups(model, config.weight_decay, 1.0)
    if companion is not None:
        groups += parameter_groups(companion, config.weight_decay, companion_lr_scale)
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


def parameter_groups(model: Any, weight_decay: float, lr_scale: float) -> list[dict[str, Any]]:
    """The trained matrices, with weight decay, and the rest, without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    others = [parameter for parameter in trained if parameter.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay, "lr_scale": lr_scale},
        {"params": others, "weight_decay": 0.0, "lr_scale": lr_scale},
    ]
    return [group for group in groups if group["params"]]


def learning_rate(config: RunConfig, step: int, total: int) -> float:
    """The learning rate of a step (0 is the first): a linear rise, then the schedule towards 0."""
    warmup = config.warmup_steps or math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if config.lr_scheduler_type == "linear":
        return config.learning_rate * (1 - done)
    if config.lr_scheduler_type == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate
