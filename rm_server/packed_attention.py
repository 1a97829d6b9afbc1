"""Attention over a packed row: chunks of tokens side by side, each seeing itself and its ancestors alone.

Registered with transformers as an attention implementation, so that a model's own code computes everything
else, over all tokens at once and without padding. A model that asks of its attention what is not done here
raises NotPackableError when it is tried, at the start.

Shapes: T places in the packed row, n chunks of L tokens, P tokens before them, H heads, G heads of keys, D.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention

from rm_server.arena import Room
from rm_server.cascade import add_context, attend_own, can_cascade
from rm_server.prompt_cache import KeysValues, Known, PromptCache

NAME = "bonsai_packed"
MAX_MASK_ELEMENTS = 2**22
"""Of one mask, or of one matrix of scores where a model caps them: bounds memory on long rows."""
# What models hand to any attention, and that changes nothing here.
HARMLESS = {"position_ids", "use_cache", "cache_position", "past_key_values", "output_attentions"}


class NotPackableError(Exception):
    """This model's attention does more than what is done here."""


@dataclass(frozen=True)
class Context:
    """What comes before a chunk: what is known, then places in this row."""

    known: Known | None = None
    places: tuple[slice, ...] = ()

    def join(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> KeysValues | None:
        """Keys and values of all of it, P x G x D, out of those of the row; None where it is nothing."""
        parts = [(keys[place], values[place]) for place in self.places]
        if self.known is not None:
            parts.insert(0, self.known.layer(layer))
        if len(parts) < 2:
            return parts[0] if parts else None
        return torch.cat([k for k, _ in parts]), torch.cat([v for _, v in parts])

    def first(self, length: int) -> Context:
        """Its first `length` tokens, of which some are in this row."""
        length -= self.known.length if self.known else 0
        places = []
        for place in self.places:
            places.append(slice(place.start, min(place.stop, place.start + length)))
            length -= places[-1].stop - places[-1].start
            if not length:
                break
        return Context(self.known, tuple(places))


@dataclass(frozen=True)
class Group:
    """Chunks with one context, side by side in the row from `place.start` on; they attend in one call."""

    place: slice
    lengths: Sequence[int]
    context: Context

    @functools.cached_property
    def _padded(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Places of tokens, n x L, chunks padded with their last, and which are none of padding."""
        if min(self.lengths) == max(self.lengths):
            return None
        lengths = torch.tensor(self.lengths)
        steps = torch.arange(max(self.lengths))
        starts = torch.cumsum(lengths, 0) - lengths + self.place.start
        places = starts[:, None] + torch.minimum(steps, lengths[:, None] - 1)
        return places, steps < lengths[:, None]

    def gather(self, row: torch.Tensor) -> torch.Tensor:
        """T x H x D -> n x H x L x D. Padding comes last, where causal attention keeps it from the rest."""
        if self._padded is None:
            chunks = row[self.place].view(len(self.lengths), -1, *row.shape[1:])
        else:
            chunks = row[self._padded[0]]
        return chunks.transpose(1, 2)

    def scatter(self, chunks: torch.Tensor, row: torch.Tensor) -> None:
        """The way back: n x H x L x D into T x H x D."""
        tokens = chunks.transpose(1, 2)
        row[self.place] = tokens.flatten(0, 1) if self._padded is None else tokens[self._padded[1]]


@dataclass
class Keep:
    """A prompt that the cache shall have, and its keys and values as the layers make them."""

    ids: tuple[int, ...]
    context: Context
    num_layers: int
    cache: PromptCache
    layers: dict[int, KeysValues] = field(default_factory=dict)
    room: Room | None = None
    has_no_room: bool = False

    def take(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Copies them, so that the rest of the row can be freed; nothing, where the cache has no room."""
        if self.has_no_room:
            return
        joined = self.context.join(layer, keys, values)
        assert joined is not None
        if self.room is None:
            size = self.num_layers * sum(part.nbytes for part in joined)
            self.room = self.cache.room(size, keys.device)
            self.has_no_room = self.room is None
        if self.room is not None:
            self.layers[layer] = self.room.put(joined[0]), self.room.put(joined[1])


@dataclass(frozen=True)
class Packed:
    """What a forward pass over one packed row needs to know in every layer."""

    groups: Sequence[Group]
    keeps: Sequence[Keep]


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed: Packed | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: 1 x H x T x D in, 1 x T x H x D out."""
    foreign = {name for name, given in others.items() if given is not None} - HARMLESS
    if packed is None or attention_mask is not None or dropout or foreign:
        raise NotPackableError(f"its attention takes {', '.join(sorted(foreign)) or 'no packed row'}")
    if not getattr(module, "is_causal", False):
        raise NotPackableError("its attention looks ahead")
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # a module's attributes are typed as tensors
    q_THD, k_TGD, v_TGD = (part[0].transpose(0, 1) for part in (query, key, value))
    for keep in packed.keeps:
        keep.take(layer, k_TGD, v_TGD)
    out_THD = q_THD.new_empty(*q_THD.shape[:2], v_TGD.shape[-1])
    one_read = can_cascade(query, value, window=sliding_window, softcap=softcap)
    for group in packed.groups:
        keys, values = group.gather(k_TGD), group.gather(v_TGD)
        context = group.context.join(layer, k_TGD, v_TGD)
        if context is not None and one_read:
            _cascade(group, q_THD, keys, values, context, out_THD, scaling)
            continue
        if context is not None:
            keys, values = _prepend(context[0], keys), _prepend(context[1], values)
        group.scatter(
            attend(group.gather(q_THD), keys, values, scale=scaling, window=sliding_window, softcap=softcap),
            out_THD,
        )
    return out_THD[None], None


transformers.AttentionInterface.register(NAME, packed_attention)


def _cascade(
    group: Group,
    q_THD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    context: KeysValues,
    out_THD: torch.Tensor,
    scale: float | None,
) -> None:
    """A group's attention with its context read once by all of its queries, not once a chunk."""
    own, sums = attend_own(group.gather(q_THD), keys, values, scale=scale)
    sums_TH1 = sums.new_empty(*q_THD.shape[:2], 1)
    group.scatter(own, out_THD)
    group.scatter(sums, sums_TH1)
    place = group.place
    out_THD[place] = add_context(out_THD[place], sums_TH1[place], q_THD[place], *context, scale=scale)


def _prepend(context_PGD: torch.Tensor, chunks_nGLD: torch.Tensor) -> torch.Tensor:
    shared = context_PGD.transpose(0, 1).expand(len(chunks_nGLD), -1, -1, -1)
    return torch.cat([shared, chunks_nGLD], dim=2)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Causal attention of the last L of P + L positions: n x H x L x D over n x G x (P + L) x D.

    window: a position sees itself and the `window` - 1 before it. softcap: scores are capped smoothly.
    """
    num_before = key.shape[2] - query.shape[2]
    if num_before == 0 and softcap is None and (window is None or window >= key.shape[2]):
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
    if query.shape[1] != key.shape[1] and (softcap is not None or query.is_cuda):  # no kernel takes all three
        key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], 1) for part in (key, value))
    outputs = []
    for first, last in _blocks(query, key.shape[2], softcap):
        seen = slice(0 if window is None else max(0, num_before + first - window + 1), num_before + last)
        mask = _mask(range(num_before + first, num_before + last), seen, window, query.device)
        block = query[:, :, first:last], key[:, :, seen], value[:, :, seen]
        if softcap is None:
            is_grouped = query.shape[1] != key.shape[1]
            outputs.append(
                scaled_dot_product_attention(*block, attn_mask=mask, scale=scale, enable_gqa=is_grouped)
            )
        else:
            outputs.append(_capped(*block, mask, scale, softcap))
    return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]


def _blocks(query: torch.Tensor, num_keys: int, softcap: float | None) -> Iterator[tuple[int, int]]:
    """Cuts the queries such that what is as large as queries x keys stays bounded."""
    copies = 1 if softcap is None else query.shape[0] * query.shape[1]
    step = max(1, MAX_MASK_ELEMENTS // (num_keys * copies))
    length = query.shape[2]
    return ((first, min(first + step, length)) for first in range(0, length, step))


def _mask(queries: range, keys: slice, window: int | None, device: torch.device) -> torch.Tensor:
    """True where a query may look."""
    at = torch.arange(queries.start, queries.stop, device=device)[:, None]
    to = torch.arange(keys.start, keys.stop, device=device)
    return to <= at if window is None else (to <= at) & (to > at - window)


def _capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scale: float | None,
    softcap: float,
) -> torch.Tensor:
    """As transformers' own attention of models that cap."""
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1, dtype=torch.float32).to(query.dtype)
    return weights @ value
