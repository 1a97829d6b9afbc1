"""A model's hidden states over a packed row (packing.py), by its own code in all but attention.

Registered with transformers as an attention implementation, and chosen for packed rows alone: generation
and padded batches run as they would without it. Queries, keys and values are spread over the grid of the
batch's rows, attend causally there, and what comes out is gathered again. Both ways are copies whose backward
passes add up in a fixed order, so that a continued run stays bit-identical.

Shapes: T places in the packed row, B x L cells in the grid, H heads, D a head's size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trainers.packing import Packing, pack

NAME = "bonsai_packed_training"
# What models hand to any attention, and that changes nothing here.
HARMLESS = {"position_ids", "use_cache", "cache_position", "past_key_values", "output_attentions"}


class NotPackableError(Exception):
    """This model's attention does more than what is done here."""


def packed_states(model: Any, packing: Packing) -> torch.Tensor:
    """The backbone's last hidden states of a packed row: (T, hidden size)."""
    base = model.base_model
    with _attention(base.config) as usual:
        states: torch.Tensor = base(
            input_ids=packing.ids_T[None],
            position_ids=packing.positions_T[None],
            use_cache=False,
            packing=packing,
            is_eager=usual == "eager",
        ).last_hidden_state
    return states[0]


@contextmanager
def _attention(config: Any) -> Iterator[str]:
    """Switches to the attention of this module for a while; gives the usual one's name."""
    usual = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield usual
    finally:
        config._attn_implementation = usual


@torch.no_grad()
def is_packable(model: Any) -> bool:
    """Tries whether a model computes the same of packed rows as of padded ones."""
    if getattr(model.config, "attention_chunk_size", None):
        return False
    rows = [[1, 2, 3, 4, 5], [1, 2, 6], [7, 0]]
    packing = pack(rows, [[0, 1], [2]], 5)
    assert packing is not None
    try:
        packed_TD = packed_states(model, packing)
    except (NotPackableError, TypeError, ValueError, KeyError, RuntimeError):  # each architecture has its own
        return False
    for row, places_L in zip(rows, packing.places_BL, strict=True):
        whole_LD = model.base_model(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state[0]
        bound = 1e-5 * max(1.0, float(whole_LD.abs().max()))  # states of large models reach hundreds
        if not torch.allclose(packed_TD[places_L[: len(row)]], whole_LD, atol=bound):
            return False
    return True


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: Packing | None = None,
    is_eager: bool = False,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: 1 x H x T x D in, 1 x T x H x D out."""
    foreign = {name for name, given in others.items() if given is not None} - HARMLESS
    if packing is None or attention_mask is not None or dropout or foreign:
        raise NotPackableError(f"its attention takes {', '.join(sorted(foreign)) or 'no packed row'}")
    q, k, v = (_to_grid(part, packing) for part in (query, key, value))
    if is_eager:
        out_BLHD = _eager(q, k, v, scaling)
    else:
        out_BLHD, _ = sdpa_attention_forward(module, q, k, v, None, scaling=scaling, is_causal=True)
    out_TE: torch.Tensor = _Gather.apply(out_BLHD.flatten(0, 1).flatten(1), packing)
    return out_TE.view(1, len(out_TE), *out_BLHD.shape[2:]), None


transformers.AttentionInterface.register(NAME, packed_attention)


def _to_grid(part_1HTD: torch.Tensor, packing: Packing) -> torch.Tensor:
    """1 x H x T x D -> B x H x L x D."""
    row_THD = part_1HTD[0].transpose(0, 1)
    grid: torch.Tensor = _Spread.apply(row_THD.flatten(1), packing)
    return grid.view(*packing.places_BL.shape, *row_THD.shape[1:]).transpose(1, 2)


def _eager(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Causal attention as plain products: B x H x L x D -> B x L x H x D."""
    copies = query.shape[1] // key.shape[1]
    if copies > 1:
        key, value = (part.repeat_interleave(copies, 1) for part in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    weights = scores.masked_fill(later, -torch.inf).softmax(-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).transpose(1, 2)


class _Spread(torch.autograd.Function):
    """T x E -> (B x L) x E. Nothing attends to padding, so that padding has no gradient."""

    @staticmethod
    def forward(ctx: Any, row_TE: torch.Tensor, packing: Packing) -> torch.Tensor:
        ctx.packing = packing
        return row_TE.index_select(0, packing.places_BL.flatten())

    @staticmethod
    def backward(ctx: Any, grad_CE: torch.Tensor) -> tuple[torch.Tensor, None]:
        grad_TE = grad_CE.index_select(0, ctx.packing.cells_T)
        for places, cells in ctx.packing.repeats:
            added = grad_TE.index_select(0, places) + grad_CE.index_select(0, cells)
            grad_TE.index_copy_(0, places, added)
        return grad_TE, None


class _Gather(torch.autograd.Function):
    """(B x L) x E -> T x E: of each place what its first cell holds."""

    @staticmethod
    def forward(ctx: Any, grid_CE: torch.Tensor, packing: Packing) -> torch.Tensor:
        ctx.packing, ctx.num_cells = packing, len(grid_CE)
        return grid_CE.index_select(0, packing.cells_T)

    @staticmethod
    def backward(ctx: Any, grad_TE: torch.Tensor) -> tuple[torch.Tensor, None]:
        grid_CE = grad_TE.new_zeros(ctx.num_cells, grad_TE.shape[1])
        return grid_CE.index_copy_(0, ctx.packing.cells_T, grad_TE), None
