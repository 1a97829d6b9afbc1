"""A model's hidden states over a packed row (packing.py), by its own code in all but attention.

Registered with transformers as an attention implementation, and chosen for packed rows alone: generation
and padded batches run as they would without it. Queries, keys and values are spread over the grid of the
batch's rows, attend causally there, and what comes out is gathered again. Both ways are copies whose backward
passes add up in a fixed order, so that a continued run stays bit-identical.

Of the last layer only some places are wanted: those that predict a target, or end a conversation. That layer
runs twice, up to its attention for all places, and from there on for the wanted ones.

Shapes: T places in the packed row, N of them wanted, B x L cells in the grid, H heads, D a head's size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import transformers
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trainers.fused import next_dtype
from trainers.packing import Packing, pack

NAME = "bonsai_packed_training"
WORTH_NARROWING = 0.9
"""Share of the places: if more are wanted, gathering them costs what it saves."""
PROJECTIONS = {"o_proj", "out_proj", "c_proj", "dense"}
"""Names of the linear layer that an attention ends with."""
# What models hand to any attention, and that changes nothing here.
HARMLESS = {"position_ids", "use_cache", "cache_position", "past_key_values", "output_attentions"}


class NotPackableError(Exception):
    """This model's attention does more than what is done here."""


class _Attended(Exception):  # noqa: N818 - no error: it is how the layer is left
    """Leaves the last layer when it has attended."""

    def __init__(self, attention: torch.nn.Module, out_1NHD: torch.Tensor) -> None:
        self.attention, self.out_1NHD = attention, out_1NHD


def packed_states(model: Any, packing: Packing, wanted_N: torch.Tensor) -> torch.Tensor:
    """The backbone's last hidden states at some places of a packed row: (N, hidden size)."""
    base, unique_N = model.base_model, wanted_N.unique()
    is_worth_it = len(unique_N) < WORTH_NARROWING * len(packing.ids_T)
    narrowed = _last_layer(base, unique_N) if is_worth_it else nullcontext()
    with _attention(base.config) as usual, narrowed:
        states: torch.Tensor = base(
            input_ids=packing.ids_T[None],
            position_ids=packing.positions_T[None],
            use_cache=False,
            packing=packing,
            is_eager=usual == "eager",
        ).last_hidden_state
    return states[0].index_select(0, wanted_N)


@contextmanager
def _attention(config: Any) -> Iterator[str]:
    """Switches to the attention of this module for a while; gives the usual one's name."""
    usual = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield usual
    finally:
        config._attn_implementation = usual


@contextmanager
def _last_layer(base: Any, wanted_N: torch.Tensor) -> Iterator[None]:
    """Narrows the last layer to the wanted places for a while."""
    names = set(base._no_split_modules or ())
    # FSDP2 gives each layer a class of its own, below the model's.
    layers = [module for module in base.modules() if names & {kind.__name__ for kind in type(module).__mro__}]
    if not layers:
        raise NotPackableError("it does not name its layers")
    whole = layers[-1].forward

    def narrowed(hidden_1TD: torch.Tensor, *args: Any, **options: Any) -> Any:
        places = hidden_1TD.shape[1]
        try:
            whole(hidden_1TD, *args, **options, wanted_N=wanted_N)
        except _Attended as layer:
            attention, out_1NE = layer.attention, layer.out_1NHD.flatten(2)
        else:
            raise NotPackableError("its last layer attends to nothing")
        narrow = partial(_narrow, places, wanted_N)
        options = {name: narrow(option) for name, option in options.items()}
        with _forward(attention, lambda *_, **__: (_projection(attention)(out_1NE), None)):
            out = whole(narrow(hidden_1TD), *map(narrow, args), **options)
        # Nobody reads the other places, but some models count them.
        return torch.zeros_like(hidden_1TD).index_copy(1, wanted_N, out)

    with _forward(layers[-1], narrowed):
        yield


@contextmanager
def _forward(module: torch.nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Has a module compute something else for a while."""
    module.forward = function
    try:
        yield
    finally:
        del module.forward


def _projection(attention: torch.nn.Module) -> torch.nn.Module:
    """What an attention ends with, by the names that models give it."""
    found = [child for name, child in attention.named_children() if name in PROJECTIONS]
    if len(found) != 1:
        raise NotPackableError("it does not say what its attention ends with")
    return found[0]


def _narrow(places: int, wanted_N: torch.Tensor, option: Any) -> Any:
    """What a layer is given, at the wanted places: positions, rotations."""
    if isinstance(option, tuple):
        return tuple(_narrow(places, wanted_N, part) for part in option)
    is_of_places = isinstance(option, torch.Tensor) and option.ndim > 1 and option.shape[1] == places
    return option.index_select(1, wanted_N) if is_of_places else option


@torch.no_grad()
def is_packable(model: Any) -> bool:
    """Tries whether a model computes the same of packed rows as of padded ones."""
    if getattr(model.config, "attention_chunk_size", None):
        return False
    rows = [[1, 2, 3, 4, 5], [1, 2, 6], [7, 0]]
    packing = pack(rows, [[0, 1], [2]], 5)
    try:
        packed_TD = packed_states(model, packing, torch.arange(len(packing.ids_T)))
        ends_BD = packed_states(model, packing, packing.places_BL[range(3), [len(row) - 1 for row in rows]])
    except (NotPackableError, TypeError, ValueError, KeyError, RuntimeError):  # each architecture has its own
        return False
    for row, places_L, end_D in zip(rows, packing.places_BL, ends_BD, strict=True):
        whole_LD = model.base_model(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state[0]
        bound = 1e-5 * max(1.0, float(whole_LD.abs().max()))  # states of large models reach hundreds
        found_LD = torch.cat([packed_TD[places_L[: len(row)]], end_D[None]])
        if not torch.allclose(found_LD, torch.cat([whole_LD, whole_LD[-1:]]), atol=bound):
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
    wanted_N: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: 1 x H x T x D in, 1 x T x H x D out.

    Raises _Attended with what stands at `wanted_N`, where that is given.
    """
    foreign = {name for name, given in others.items() if given is not None} - HARMLESS
    if packing is None or attention_mask is not None or dropout or foreign:
        raise NotPackableError(f"its attention takes {', '.join(sorted(foreign)) or 'no packed row'}")
    q, k, v = (_to_grid(part, packing) for part in (query, key, value))
    if is_eager:
        out_HBLD = _eager(q, k, v, scaling)
    else:
        rows = (part.transpose(0, 1) for part in (q, k, v))
        out_BLHD, _ = sdpa_attention_forward(module, *rows, None, scaling=scaling, is_causal=True)
        out_HBLD = out_BLHD.permute(2, 0, 1, 3)
    out_HTD: torch.Tensor = _Gather.apply(out_HBLD.flatten(1, 2), packing)
    out_1THD = out_HTD.transpose(0, 1)[None]
    if wanted_N is not None:
        raise _Attended(module, out_1THD.index_select(1, wanted_N))
    return out_1THD.contiguous(), None


transformers.AttentionInterface.register(NAME, packed_attention)


def _to_grid(part_1HTD: torch.Tensor, packing: Packing) -> torch.Tensor:
    """1 x H x T x D -> H x B x L x D."""
    grid_HCD: torch.Tensor = _Spread.apply(part_1HTD[0], packing)
    return grid_HCD.view(len(grid_HCD), *packing.places_BL.shape, -1)


def _eager(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Causal attention as plain products: H x B x L x D, of all three and of what comes out."""
    dtype = next_dtype(query)
    query, key, value = (part.to(dtype) for part in (query, key, value))
    copies = query.shape[0] // key.shape[0]
    if copies > 1:
        key, value = (part.repeat_interleave(copies, 0) for part in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out: torch.Tensor = _Attention.apply(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), scale)
    return out.view(query.shape)


class _Attention(torch.autograd.Function):
    """softmax(q k' * scale) v of G rows with a head each, causal: G x L x D. Keeps the weights, G x L x L."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        later_LL = q.new_full((q.shape[1], k.shape[1]), -torch.inf).triu_(1)
        scores = torch.baddbmm(later_LL, q, k.transpose(1, 2), alpha=scale)
        weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale = scale
        return torch.bmm(weights, v)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        q, k, v, weights = ctx.saved_tensors
        of_weights = torch.bmm(grad, v.transpose(1, 2))
        softmax_backward = torch.ops.aten._softmax_backward_data
        of_scores = softmax_backward(of_weights, weights, -1, weights.dtype).mul_(ctx.scale)
        of_v = torch.bmm(weights.transpose(1, 2), grad)
        return torch.bmm(of_scores, k), torch.bmm(of_scores.transpose(1, 2), q), of_v, None


class _Spread(torch.autograd.Function):
    """H x T x D -> H x (B x L) x D. Nothing attends to padding, so that padding has no gradient."""

    @staticmethod
    def forward(ctx: Any, row_HTD: torch.Tensor, packing: Packing) -> torch.Tensor:
        ctx.packing = packing
        if packing.is_grid:
            return row_HTD.contiguous()
        return row_HTD.index_select(1, packing.places_BL.flatten())

    @staticmethod
    def backward(ctx: Any, grad_HCD: torch.Tensor) -> tuple[torch.Tensor, None]:
        packing = ctx.packing
        if packing.is_grid:
            return grad_HCD, None
        grad_HTD = grad_HCD.index_select(1, packing.cells_T)
        for places, cells in packing.repeats:
            added = grad_HTD.index_select(1, places) + grad_HCD.index_select(1, cells)
            grad_HTD.index_copy_(1, places, added)
        return grad_HTD, None


class _Gather(torch.autograd.Function):
    """H x (B x L) x D -> H x T x D: of each place what its first cell holds."""

    @staticmethod
    def forward(ctx: Any, grid_HCD: torch.Tensor, packing: Packing) -> torch.Tensor:
        ctx.packing, ctx.num_cells = packing, grid_HCD.shape[1]
        return grid_HCD.view_as(grid_HCD) if packing.is_grid else grid_HCD.index_select(1, packing.cells_T)

    @staticmethod
    def backward(ctx: Any, grad_HTD: torch.Tensor) -> tuple[torch.Tensor, None]:
        if ctx.packing.is_grid:
            return grad_HTD, None
        heads, _, size = grad_HTD.shape
        grad_HCD = grad_HTD.new_zeros(heads, ctx.num_cells, size)
        return grad_HCD.index_copy_(1, ctx.packing.cells_T, grad_HTD), None
