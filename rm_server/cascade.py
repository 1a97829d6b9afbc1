"""Attention of many chunks to one context, in two parts: each chunk to itself, then all of them at once to
what comes before them, whose keys and values are read once and copied never.

softmax over both parts is the two parts' own outputs, weighed by their sums of exponentials, which the kernel
returns as logarithms: FlashAttention's rule for blocks (Dao et al. 2022, arXiv 2205.14135, section 3.1), used
across sequences as in Hydragen (Juravsky et al. 2024, arXiv 2402.05099). On a CPU, best-of-16 over a prompt
four times as long as an answer takes less than half of the time in attention than with the prompt's keys
copied to each of the answers.

Shapes: n chunks of L tokens, T tokens of chunks side by side, P of context, H heads, G heads of keys, D.
"""

from __future__ import annotations

import torch


def can_cascade(
    query: torch.Tensor, value: torch.Tensor, *, window: int | None, softcap: float | None
) -> bool:
    """Whether the kernel is there, and does what the model asks. (It is torch's own of CPUs, which
    scaled_dot_product_attention would call too, but without its sums.)"""
    return (
        hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
        and query.device.type == "cpu"
        and query.shape[-1] == value.shape[-1]
        and window is None
        and softcap is None
    )


def attend_own(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of chunks, n x H x L x D over n x G x L x D: outputs like the queries, and the
    logarithms of the sums of exponentials, n x H x L x 1, float32."""
    outputs, sums = _flash(query, key, value, scale, is_causal=True)
    return outputs, sums[..., None]


def add_context(
    own_THD: torch.Tensor,
    sums_TH1: torch.Tensor,
    q_THD: torch.Tensor,
    key_PGD: torch.Tensor,
    value_PGD: torch.Tensor,
    *,
    scale: float | None,
) -> torch.Tensor:
    """What attend_own returned of tokens, T x H x D, with their attention to a context added."""
    query, key, value = (part.transpose(0, 1)[None] for part in (q_THD, key_PGD, value_PGD))
    outputs, sums = _flash(query, key, value, scale, is_causal=False)
    weights_TH1 = torch.sigmoid(sums_TH1 - sums[0].transpose(0, 1)[..., None])
    return torch.lerp(outputs[0].transpose(0, 1), own_THD, weights_TH1.to(own_THD.dtype))


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, *, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    if key.shape[1] != query.shape[1]:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    found: tuple[torch.Tensor, torch.Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, scale=scale
    )
    return found
