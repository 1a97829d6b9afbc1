"""Token and sequence log-probabilities: the only place that touches logits.

The hidden states that predict a target are gathered before the output head, so that prompts and padding are
never projected onto the vocabulary. Where the logits of all targets would not fit a budget, they are made in
chunks, and made again in the backward pass.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from trainers.data import CausalBatch, RewardBatch
from trainers.packed_attention import packed_states

MAX_LOGITS = 2**26
"""Logits held at once: 256 MiB in float32."""


def token_logprobs(
    model: Any, batch: CausalBatch, max_logits: int = MAX_LOGITS, temperature: float = 1.0
) -> torch.Tensor:
    """log p of each target token given what stands before it: (N,), float32, differentiable.

    At a temperature other than 1 p is what is sampled from at that temperature.
    """
    head, hidden_ND = model.get_output_embeddings(), target_states(model, batch)
    return head_logprobs(head, hidden_ND, batch.targets_N, max_logits, temperature)


def token_logprobs_and_entropies(
    model: Any, batch: CausalBatch, temperature: float = 1.0, max_logits: int = MAX_LOGITS
) -> tuple[torch.Tensor, torch.Tensor]:
    """`token_logprobs`, and the entropy of the distribution that each target comes from: nats, (N,) each."""
    head, hidden_ND = model.get_output_embeddings(), target_states(model, batch)
    compute = partial(_logprobs_and_entropies, head, temperature)
    both_N2 = _in_chunks(compute, hidden_ND, batch.targets_N, max_logits // head.weight.shape[0])
    return both_N2[:, 0], both_N2[:, 1]


def target_states(model: Any, batch: CausalBatch) -> torch.Tensor:
    """The hidden states that predict the targets: (N, D)."""
    return states_at(model, batch, batch.positions_N)


def states_at(model: Any, batch: CausalBatch | RewardBatch, cells_N: torch.Tensor) -> torch.Tensor:
    """The hidden states at cells of the flattened B x T grid: (N, D)."""
    if batch.packing is not None and getattr(model, "is_packable", False):
        return packed_states(model, batch.packing, batch.packing.place(cells_N))
    return hidden_states(model, batch.input_ids_BT).flatten(0, 1).index_select(0, cells_N)


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
    head: Any,
    hidden_ND: torch.Tensor,
    targets_N: torch.Tensor,
    max_logits: int = MAX_LOGITS,
    temperature: float = 1.0,
) -> torch.Tensor:
    """log softmax(head(h) / temperature)[target] of each row, at most `max_logits` logits at a time."""
    compute = partial(_logprobs, head, temperature)
    return _in_chunks(compute, hidden_ND, targets_N, max_logits // head.weight.shape[0])


def _in_chunks(
    compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    hidden_ND: torch.Tensor,
    targets_N: torch.Tensor,
    size: int,
) -> torch.Tensor:
    size = max(1, size)
    if len(targets_N) <= size:
        return compute(hidden_ND, targets_N)
    parts = zip(hidden_ND.split(size), targets_N.split(size), strict=True)
    # Without gradients there is nothing to recompute, and checkpoint would only warn.
    if not torch.is_grad_enabled():
        return torch.cat([compute(hidden, targets) for hidden, targets in parts])
    return torch.cat([checkpoint(compute, hidden, targets, use_reentrant=False) for hidden, targets in parts])


def _logits(head: Any, temperature: float, hidden_ND: torch.Tensor) -> torch.Tensor:
    logits_NV: torch.Tensor = head(hidden_ND).float()
    return logits_NV if temperature == 1 else logits_NV / temperature


def _logprobs(
    head: Any, temperature: float, hidden_ND: torch.Tensor, targets_N: torch.Tensor
) -> torch.Tensor:
    logits_NV = head(hidden_ND)
    if temperature != 1:
        logits_NV = logits_NV.float() / temperature
    logprobs_N: torch.Tensor = _LogSoftmaxAt.apply(logits_NV, targets_N)
    return logprobs_N


class _LogSoftmaxAt(torch.autograd.Function):
    """log softmax(logits)[target] of each row, in float32.

    Torch's own cross entropy goes through a gradient of the logits' size, zero but for one place a row.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        whole_NV = logits_NV.float()
        largest_N1 = whole_NV.amax(-1, keepdim=True)
        terms_NV = (whole_NV - largest_N1).exp_()
        sums_N1 = terms_NV.sum(-1, keepdim=True)
        ctx.save_for_backward(terms_NV, sums_N1, targets_N)
        ctx.dtype = logits_NV.dtype
        chosen_N1 = whole_NV.gather(1, targets_N[:, None])
        return (chosen_N1 - largest_N1 - sums_N1.log())[:, 0]

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor) -> tuple[torch.Tensor, None]:
        terms_NV, sums_N1, targets_N = ctx.saved_tensors
        grad_N1 = grad_N[:, None]
        of_logits_NV = terms_NV * (-grad_N1 / sums_N1)
        of_logits_NV.scatter_add_(1, targets_N[:, None], grad_N1)
        return of_logits_NV.to(ctx.dtype), None


def _logprobs_and_entropies(
    head: Any, temperature: float, hidden_ND: torch.Tensor, targets_N: torch.Tensor
) -> torch.Tensor:
    logprobs_NV = _logits(head, temperature, hidden_ND).log_softmax(-1)
    chosen_N = logprobs_NV.gather(1, targets_N[:, None])[:, 0]
    return torch.stack([chosen_N, -(logprobs_NV.exp() * logprobs_NV).sum(-1)], dim=1)
