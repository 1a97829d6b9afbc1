"""Normalising a reward model: mean 0 and standard deviation 1 over answers of the reference policy.

Only then does one beta, one KL coefficient, one threshold mean the same for every reward model (Ziegler et
al. 2019, section 2.1). normalised = (raw - mean) / std: the head's weights are divided by std, and mean /
std becomes the offset.

What the normalised rewards are distributed like is kept as the model's calibration: by it a reward server
tells whether a score is one that the model usually gives. Its quantiles are Weibull's, at p (n + 1) of n
ordered samples: a new sample of the same distribution falls below such a quantile with probability p,
whatever the distribution is (beyond the outermost samples there is nothing to say, and it is they).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from trainers import models
from trainers.data import Batches, Idle, Preference, RewardBatch, Tokens, collate_rewards, keep_usable
from trainers.encoding import tokenize_conversations
from trainers.errors import DataError
from trainers.formats import read_conversations
from trainers.inputs import Inputs
from trainers.run import Run

DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
QUANTILES = (0.001, 0.01, 0.05, *DECILES[:2], 0.25, *DECILES[2:7], 0.75, *DECILES[7:], 0.95, 0.99, 0.999)
SampleT = TypeVar("SampleT")
ENOUGH = 999
"""Samples from which on the quantiles 0.001 and 0.999 are not simply the least and the greatest of them."""


def read_samples(run: Run, inputs: Inputs[Any], name: str) -> list[Tokens]:
    """Reads and tokenises the conversations to normalise over, and adds them to the run's sources."""
    rows, sources = read_conversations(name)
    run.describe(inputs.tokenizer, inputs.parent, [*run.sources, *sources])
    samples, notes = keep_usable(tokenize_conversations(rows, inputs.encoder), inputs.max_length)
    for note in notes:
        run.say(f"normalisation: {note}")
    return samples


def candidates(preferences: Sequence[Preference]) -> list[Tokens]:
    """All answers of all preferences."""
    return [candidate for preference in preferences for candidate in preference.candidates]


def choose_samples(samples: Sequence[SampleT], limit: int, seed: int) -> list[SampleT]:
    """At most `limit` of the samples, drawn without replacement."""
    if len(samples) <= limit:
        return list(samples)
    chosen = np.random.default_rng(seed).choice(len(samples), limit, replace=False)
    return [samples[index] for index in chosen]


def score(
    run: Run, model: Any, samples: Sequence[Tokens], pad_token_id: int, batch_size: int
) -> torch.Tensor:
    """Raw rewards of the samples, longest first: (S,) on the CPU."""
    return _score(run, model, samples, pad_token_id, batch_size)[0]


def score_in_order(
    run: Run, model: Any, samples: Sequence[Tokens], pad_token_id: int, batch_size: int
) -> torch.Tensor:
    """Raw rewards of the samples, in their order: (S,) on the CPU."""
    raw_S, order_S = _score(run, model, samples, pad_token_id, batch_size)
    return torch.empty_like(raw_S).index_copy(0, order_S, raw_S)


def _score(
    run: Run, model: Any, samples: Sequence[Tokens], pad_token_id: int, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    collate = partial(collate_rewards, pad_token_id=pad_token_id)
    batches = Batches(samples, collate, 2 * batch_size, None, run.devices.part)
    with run.inference():
        raw = [
            run.devices.call(model, _rewards, model, batch.to(run.device)).cpu() for batch in batches.epoch(0)
        ]
    order = [index for batch in batches.order(0) for index in run.devices.part.of(batch)]
    raw_parts, order_parts = zip(*run.devices.gather((torch.cat(raw), torch.tensor(order))), strict=True)
    return torch.cat(raw_parts), torch.cat(order_parts)


def _rewards(model: Any, batch: RewardBatch | Idle[RewardBatch]) -> torch.Tensor:
    if isinstance(batch, Idle):
        return models.rewards(model, batch.stand_in)[:0]
    return models.rewards(model, batch)


def normalize(model: Any, raw_S: torch.Tensor) -> tuple[torch.Tensor, dict[str, float], float]:
    """Folds the gain into the head; returns the normalised rewards, what the raw ones were like, and the
    offset: normalised reward = new raw score - offset.
    """
    raw_S = raw_S.double()
    mean, std = float(raw_S.mean()), float(raw_S.std(correction=0))
    if not std > 1e-9 * max(1.0, abs(mean)):
        raise DataError(
            "the reward model gives every normalisation sample the same score: it learned nothing"
        )
    with torch.no_grad():
        model.score.weight.div_(std)
    return (raw_S - mean) / std, {"raw_samples": len(raw_S), "raw_mean": mean, "raw_std": std}, mean / std


def calibrate(normalized_S: torch.Tensor, source: str) -> dict[str, Any]:
    """The distribution of normalised rewards of answers from `source`."""
    rewards_S = normalized_S.double().numpy()
    quantiles = np.quantile(rewards_S, QUANTILES, method="weibull").tolist()
    return {
        "source": source,
        "samples": len(rewards_S),
        "mean": float(rewards_S.mean()),
        "std": float(rewards_S.std()),
        "quantiles": {str(q): round(value, 6) for q, value in zip(QUANTILES, quantiles, strict=True)},
    }


def describe(calibration: dict[str, Any], metrics: dict[str, float]) -> str:
    """One line for the user."""
    text = f"normalised over {calibration['raw_samples']} answers (raw {calibration['raw_mean']:.3g} "
    text += f"± {calibration['raw_std']:.3g})"
    if "eval_accuracy" in metrics:
        text += f"; held-out accuracy {metrics['eval_accuracy']:.1%}"
    return text
