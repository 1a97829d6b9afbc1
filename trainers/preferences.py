"""What a reward model can learn from: pairs, choices among several answers, or answers labelled good and
bad.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from trainers import data, encoding, formats, losses, models
from trainers.chat import ChatEncoder
from trainers.data import ChoiceBatch, RewardBatch
from trainers.loop import Loss

RowT = TypeVar("RowT")
ExampleT = TypeVar("ExampleT")
BatchT = TypeVar("BatchT")


@dataclass(frozen=True, slots=True)
class Form(Generic[RowT, ExampleT, BatchT]):
    """One kind of preference, from file to loss."""

    read: Callable[[str], tuple[list[RowT], list[formats.Source]]]
    tokenize: Callable[[Sequence[RowT], ChatEncoder], list[ExampleT]]
    collate: Callable[..., BatchT]
    """Of examples and the pad token's id."""
    loss: Callable[..., Loss]
    """Of a model, a batch and the weight of centring."""


def pair_loss(model: Any, batch: RewardBatch, centering: float) -> Loss:
    """Bradley-Terry on pairs."""
    chosen_B, rejected_B = models.rewards(model, batch).chunk(2)
    values_B = losses.bradley_terry(chosen_B, rejected_B, batch.margins_P)
    values_B += centering * losses.reward_centering(chosen_B, rejected_B)
    metrics = {"accuracy": (chosen_B > rejected_B).float(), "margin": chosen_B - rejected_B}
    return Loss(values_B, batch.num_tokens, metrics)


def choice_loss(model: Any, batch: ChoiceBatch, centering: float) -> Loss:
    """The softmax choice of the best among several; the margin is that over the best of the others."""
    rewards_CK = by_choice(models.rewards(model, batch.rows), batch.counts_C)
    values_C = losses.choice(rewards_CK, batch.margins_C)
    means_C = rewards_CK.masked_fill(rewards_CK.isinf(), 0).sum(1) / batch.counts_C
    values_C += centering * losses.reward_centering(means_C, means_C)
    leads_C = rewards_CK[:, 0] - rewards_CK[:, 1:].amax(1)
    metrics = {"accuracy": (leads_C > 0).float(), "margin": leads_C}
    return Loss(values_C, batch.rows.num_tokens, metrics)


def by_choice(rewards_R: torch.Tensor, counts_C: torch.Tensor) -> torch.Tensor:
    """Rewards as one row for each choice, filled up with minus infinity: (C, K), the best in column 0."""
    rows = rewards_R.split(counts_C.tolist())
    return pad_sequence(list(rows), batch_first=True, padding_value=-torch.inf)


GOOD, BAD = "GOOD: ", "BAD: "


def read_labelled(name: str) -> tuple[list[formats.Pair], list[formats.Source]]:
    """Pairs, each as two, of its answers with their labels."""
    pairs, sources = formats.read_pairs(name)
    return [labelled for pair in pairs for labelled in label_answers(pair)], sources


def label_answers(pair: formats.Pair) -> tuple[formats.Pair, formats.Pair]:
    """The preferred answer is rather good than bad, the other rather bad than good."""

    def labelled(label: str, answer: Sequence[formats.Message]) -> list[formats.Message]:
        first, *rest = answer
        return [{**first, "content": label + first["content"]}, *rest]

    better, worse = pair.chosen, pair.rejected
    return (
        replace(pair, chosen=labelled(GOOD, better), rejected=labelled(BAD, better), margin=0.0),
        replace(pair, chosen=labelled(BAD, worse), rejected=labelled(GOOD, worse), margin=0.0),
    )


FORMS: dict[str, Form[Any, Any, Any]] = {
    "bradley_terry": Form(
        formats.read_pairs, encoding.tokenize_reward_pairs, data.collate_reward_pairs, pair_loss
    ),
    "binary": Form(read_labelled, encoding.tokenize_reward_pairs, data.collate_reward_pairs, pair_loss),
    "choice": Form(formats.read_choices, encoding.tokenize_choices, data.collate_choices, choice_loss),
}
