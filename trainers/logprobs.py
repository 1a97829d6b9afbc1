"""Token and sequence log-probabilities: the only place that touches logits.

The hidden states that predict a target are gathered before the output head, so that prompts and padding are
never projected onto the vocabulary. Where the logits of all targets would not fit a budget, they are made in
chunks, and made again in the backward pass.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from trainers.data import CausalBatch

MAX_LOGITS = 2**26
"""Logits held at once: 256 MiB in float32."""


def token_logprobs(model: Any, batch: CausalBatch, max_logits: int = MAX_LOGITS) -> torch.Tensor:
    """log p of each target token given what stands before it: (N,), float32, differentiable."""
    hidden_BTD = hidden_states(model, batch.input_ids_BT)
    hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, batch.positions_N)
    return head_logprobs(model.get_output_embeddings(), hidden_ND, batch.targets_N, max_logits)


def sequence_logps(logprobs_N: torch.Tensor, batch: CausalBatch) -> torch.Tensor:
    """Sums token log-probabilities within each row: (B,), nats per sequence."""
    zeros_B = logprobs_N.new_zeros(len(batch.input_ids_BT))
    return zeros_B.index_add(0, batch.rows_N, logprobs_N)


def sequence_lengths(batch: CausalBatch) -> torch.Tensor:
    """Target tokens of each row: (B,)."""
    return torch.bincount(batch.rows_N, minlength=len(batch.input_ids_BT))


def hidden_states(model: Any, input_ids_BT: torch.Tensor) -> torch.Tensor:
    """The backbone's last hidden states (B, T, D) of right-padded rows; causality makes a mask needless."""
    hidden_BTD: torch.Tensor = model.base_model(input_ids=input_ids_BT, use_cache=False).last_hidden_state
    return hidden_BTD


def head_logprobs(
    head: Any, hidden_ND: torch.Tensor, targets_N: torch.Tensor, max_logits: int = MAX_LOGITS
) -> torch.Tensor:
    """log softmax(head(h))[target] of each row, at most `max_logits` logits at a time."""
    size = max(1, max_logits // head.weight.shape[0])
    if len(targets_N) <= size:
        return _logprobs(head, hidden_ND, targets_N)
    parts = zip(hidden_ND.split(size), targets_N.split(size), strict=True)
    # Without gradients there is nothing to recompute, and checkpoint would only warn.
    if not torch.is_grad_enabled():
        return torch.cat([_logprobs(head, hidden, targets) for hidden, targets in parts])
    return torch.cat(
        [checkpoint(_logprobs, head, hidden, targets, use_reentrant=False) for hidden, targets in parts]
    )


def _logprobs(head: Any, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    logits_NV = head(hidden_ND).float()
    return -F.cross_entropy(logits_NV, targets_N, reduction="none")
