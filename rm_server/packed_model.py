"""A decoder that reads a batch as one packed row: no padding, and what its rows begin with only once.

    rows -> what the cache knows -> trees -> groups of chunks -> one forward pass -> each row's last state

Only for models to which that makes no difference. `why_not_packable` says what a configuration rules out;
whether the rest holds is not listed but tried: RewardModel compares scores before it uses this.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from rm_server.packed_attention import Context, Group, Keep, Packed
from rm_server.packing import MIN_SHARED, TextIds, Tree, grow
from rm_server.prompt_cache import KeptPrompt, Known, PromptCache

LAYER_TYPES = {"full_attention", "sliding_attention"}
ROPE_OF_BATCH = {"dynamic", "longrope"}
# Modules of a layer that treat every token by itself, and come after its attention.
POSITION_WISE = {"mlp", "self_attn.o_proj"}


def depends_on_batch(config: Any) -> bool:
    """Whether its rotations depend on the longest text of a batch, so that each text must be read alone."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return any(kind.get("rope_type") in ROPE_OF_BATCH for kind in kinds)


def why_not_packable(config: Any) -> str | None:
    """What in a model's configuration rules packing out; None where nothing does."""
    if getattr(config, "is_causal", True) is False or getattr(config, "is_encoder_decoder", False):
        return "its attention looks ahead"
    if not set(getattr(config, "layer_types", None) or ()) <= LAYER_TYPES:
        return "it has layers that are not attention, or other kinds of it"
    if depends_on_batch(config):
        return "its position embedding depends on the longest text of a batch"
    return None


class PackedModel:
    """Wraps the backbone of a classifier, whose attention is packed_attention. One thread calls it."""

    def __init__(self, backbone: Any, cache: PromptCache) -> None:
        self._backbone = backbone
        self.cache = cache
        self._final = _FinalLayer(backbone)
        self._num_layers: int = backbone.config.get_text_config().num_hidden_layers

    def last_states(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, int]:
        """Rows of token ids -> the last token's state of each, B x D; and how many tokens were computed."""
        row = self._pack(rows)
        device = self._backbone.device
        last = torch.tensor([row.last[i] for i in range(len(rows))], device=device)
        with self._final.only(last):
            states_TD = self._backbone(
                torch.tensor([row.ids], device=device),
                position_ids=torch.tensor([row.positions], device=device),
                use_cache=False,
                packed=Packed(row.groups, list(row.keeps.values())),
            ).last_hidden_state[0]
        for keep in row.keeps.values():
            if keep.room is not None:
                self.cache.keep(KeptPrompt(keep.ids, keep.layers, keep.room))
        return states_TD[last], len(row.ids)

    def _pack(self, rows: Sequence[Sequence[int]]) -> _Row:
        members: defaultdict[Known | None, list[int]] = defaultdict(list)
        for index, ids in enumerate(rows):
            known = self.cache.find(ids, _prompt_length(ids)) if self.cache.enabled else None
            members[known].append(index)
        packed = _Row()
        for known, indices in members.items():
            contexts = packed.add(grow(rows, indices, known.length if known else 0), known)
            for index in indices:
                length = _prompt_length(rows[index])
                is_new = length >= MIN_SHARED and (known is None or known.length < length)
                if is_new and self.cache.has_room_for(length):
                    prompt = tuple(rows[index][:length])
                    context = contexts[index].first(length)
                    packed.keeps.setdefault(prompt, Keep(prompt, context, self._num_layers, self.cache))
        return packed


class _FinalLayer:
    """Has what comes after attention in the last layer computed for some places alone; the rest become zeros.

    Of a row's other tokens nobody asks what the last layer makes. That saves a tenth of a model of 8 layers.
    """

    def __init__(self, backbone: Any) -> None:
        self._places: torch.Tensor | None = None
        self._num_places = 0
        layers = getattr(backbone, "layers", None) or [torch.nn.Module()]
        for name, module in layers[-1].named_modules():
            if name in POSITION_WISE:
                module.register_forward_pre_hook(self._before)
                module.register_forward_hook(self._after)

    @contextmanager
    def only(self, places: torch.Tensor) -> Iterator[None]:
        """While this lasts."""
        self._places = places
        try:
            yield
        finally:
            self._places = None

    def _before(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
        if self._places is None:
            return None
        self._num_places = inputs[0].shape[1]
        return (inputs[0][:, self._places], *inputs[1:])

    def _after(self, module: torch.nn.Module, inputs: Any, some: torch.Tensor) -> torch.Tensor | None:
        if self._places is None:
            return None
        states = some.new_zeros(1, self._num_places, some.shape[-1])
        states[:, self._places] = some
        return states


@dataclass
class _Row:
    """The packed row in the making."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    last: dict[int, int] = field(default_factory=dict)  # of a row of the batch, where its last token stands
    groups: list[Group] = field(default_factory=list)
    keeps: dict[tuple[int, ...], Keep] = field(default_factory=dict)

    def add(self, tree: Tree, known: Known | None) -> dict[int, Context]:
        """Appends the tree's chunks; by row of the batch, where all that it consists of stands."""
        places: dict[int, slice] = {}
        families = tree.siblings()
        for family in families:
            for index in family:
                chunk = tree.chunks[index]
                places[index] = slice(len(self.ids), len(self.ids) + len(chunk.ids))
                self.ids += chunk.ids
                self.positions += range(chunk.position, chunk.position + len(chunk.ids))

        def context(chunk: int | None) -> Context:
            return Context(known, tuple(places[ancestor] for ancestor in tree.path(chunk)))

        for family in families:
            place = slice(places[family[0]].start, places[family[-1]].stop)
            lengths = [len(tree.chunks[index].ids) for index in family]
            self.groups.append(Group(place, lengths, context(tree.chunks[family[0]].parent)))
        self.last.update((row, places[end].stop - 1) for row, end in tree.ends.items())
        return {row: context(end) for row, end in tree.ends.items()}


def _prompt_length(ids: Sequence[int]) -> int:
    return min(ids.prompt_length, len(ids) - 1) if isinstance(ids, TextIds) else 0
