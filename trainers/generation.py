"""Sampling from a transformers model, one token for all rows at a time, with a key-value cache.

Rows that ended leave the batch, which transformers' own generate carries on to the length of the longest;
each row draws from random numbers of its own, so that what it becomes does not depend on when others leave.
Prompts are padded on the left, and positions count from each prompt's first token.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from trainers.errors import DivergedError
from trainers.kv_cache import roomy_cache

COMPACT_BELOW = 0.75
"""The share of rows still going below which the batch (and its cache) is copied without the rest."""


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    end_token_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    numbers_BL: torch.Tensor,
) -> list[list[int]]:
    """Continues each prompt up to and with an end token, or to `max_new_tokens`.

    `numbers_BL` are random numbers in [0, 1), one for each token that a row may get; temperature 0 takes the
    likeliest tokens. Raises DivergedError where the model's logits are not finite.
    """
    batch = _Batch(model, prompts, max_new_tokens)
    numbers_BL = numbers_BL.to(batch.device)
    ends = torch.tensor(end_token_ids, dtype=torch.long, device=batch.device)
    answers: list[list[int]] = [[] for _ in prompts]
    for at in range(max_new_tokens):
        logits_AV = batch.next_logits()
        chosen_A = draw(logits_AV, temperature, numbers_BL[batch.rows_A, at])
        is_going_A = batch.is_going_A & ~torch.isin(chosen_A, ends)
        for row, token, was_going in zip(
            batch.rows_A.tolist(), chosen_A.tolist(), batch.is_going_A.tolist(), strict=True
        ):
            if was_going:
                answers[row].append(token)
        if not bool(is_going_A.any()):
            break
        batch.append(chosen_A, is_going_A)
    return answers


def draw(logits_AV: torch.Tensor, temperature: float, numbers_A: torch.Tensor) -> torch.Tensor:
    """The token of each row where the cumulative probability passes that row's number in [0, 1): (A,)."""
    if temperature == 0:
        return logits_AV.argmax(-1)
    # Sums over a large vocabulary lose rare tokens in float32.
    cumulative_AV = torch.softmax(logits_AV / temperature, dim=-1).double().cumsum(-1)
    totals_A1 = cumulative_AV[:, -1:]
    if not bool(totals_A1.isfinite().all()):
        raise DivergedError("the policy's logits are not finite")
    drawn_A1 = torch.searchsorted(cumulative_AV, numbers_A[:, None] * totals_A1, right=True)
    return drawn_A1[:, 0].clamp(max=logits_AV.shape[-1] - 1)


class _Batch:
    """The rows under way: A of them, of which some have ended and wait for the next compaction."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        self.model, self.device = model, model.device
        self.accepted = inspect.signature(model.forward).parameters
        width = max(len(prompt) for prompt in prompts)
        self.cache = roomy_cache(model.config, width + max_new_tokens)
        # What stands in the padding is masked, so that any id will do.
        padded = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        masks = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self.input_ids_AT = torch.tensor(padded, device=self.device)
        self.mask_AT = torch.tensor(masks, device=self.device)
        self.position_ids_AT = (self.mask_AT.cumsum(-1) - 1).clamp(min=0)
        self.rows_A = torch.arange(len(prompts), device=self.device)
        self.is_going_A = torch.ones(len(prompts), dtype=torch.bool, device=self.device)

    def next_logits(self) -> torch.Tensor:
        """Logits of each row's next token: (A, V), float32."""
        optional = {"position_ids": self.position_ids_AT, "logits_to_keep": 1}
        output = self.model(
            input_ids=self.input_ids_AT,
            attention_mask=self.mask_AT,
            past_key_values=self.cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in self.accepted},
        )
        logits_AV: torch.Tensor = output.logits[:, -1].float()
        return logits_AV

    def append(self, chosen_A: torch.Tensor, is_going_A: torch.Tensor) -> None:
        """Puts the chosen tokens behind the rows, and lets go of rows that ended once they are many."""
        positions_A = self.position_ids_AT[:, -1] + 1
        self.is_going_A = is_going_A
        if int(is_going_A.sum()) <= COMPACT_BELOW * len(is_going_A):
            kept = is_going_A.nonzero()[:, 0]
            self.cache.batch_select_indices(kept)
            self.rows_A, self.mask_AT = self.rows_A[kept], self.mask_AT[kept]
            self.is_going_A, chosen_A, positions_A = is_going_A[kept], chosen_A[kept], positions_A[kept]
        self.input_ids_AT = chosen_A[:, None]
        self.position_ids_AT = positions_A[:, None]
        self.mask_AT = torch.cat([self.mask_AT, self.mask_AT.new_ones(len(chosen_A), 1)], dim=1)
