"""Keys and values of prompts, kept for later requests: bounded in bytes, the longest unused go first.

A policy's candidates come to be judged as they finish, in several requests with one prompt; all but the first
find it here. A kept prompt also serves those that begin like it (the same system message, say): what
they have in common is found by comparing tokens. One thread uses it, the one that computes.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rm_server.arena import Arena, Room
from rm_server.metrics import Metrics
from rm_server.packing import MIN_SHARED, common_length

MAX_SIMILAR = 8  # prompts that are compared with a row in full, of those that begin like it

KeysValues = tuple[torch.Tensor, torch.Tensor]  # each tokens x heads x head size


@dataclass(frozen=True, eq=False)
class KeptPrompt:
    """Its tokens, and what every layer made of them."""

    ids: tuple[int, ...]
    layers: dict[int, KeysValues]
    room: Room | None = None
    """Where they are, if not on the heap."""

    @property
    def num_bytes(self) -> int:
        """Of the tensors."""
        return sum(tensor.nbytes for pair in self.layers.values() for tensor in pair)


@dataclass(frozen=True)
class Known:
    """The first `length` tokens of a kept prompt."""

    prompt: KeptPrompt
    length: int

    def layer(self, index: int) -> KeysValues:
        """Their keys and values, length x G x D."""
        keys, values = self.prompt.layers[index]
        return keys[: self.length], values[: self.length]


class PromptCache:
    """Holds at most `max_bytes`; with 0 it keeps nothing and is never asked."""

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._prompts: OrderedDict[tuple[int, ...], KeptPrompt] = OrderedDict()
        self._beginnings: defaultdict[tuple[int, ...], list[KeptPrompt]] = defaultdict(list)
        self._num_bytes = 0
        self._bytes_per_token = 0
        self._arena: Arena | None = None

    @property
    def enabled(self) -> bool:
        """Whether anything is ever kept."""
        return self._max_bytes > 0

    def has_room_for(self, num_tokens: int) -> bool:
        """Whether a prompt of this length could be kept; before the first, it seems so."""
        return self.enabled and num_tokens * self._bytes_per_token <= self._max_bytes

    def find(self, ids: Sequence[int], prompt_length: int) -> Known | None:
        """What is kept of the beginning of `ids`: at least MIN_SHARED tokens, at most all but the last.

        It counts as a hit where that is all of the `prompt_length` tokens that other rows may share.
        """
        found: Known | None = None
        row = tuple(ids)
        for prompt in reversed(self._beginnings.get(row[:MIN_SHARED], [])[-MAX_SIMILAR:]):
            length = min(common_length(prompt.ids, row), len(row) - 1)
            if length >= MIN_SHARED and (found is None or length > found.length):
                found = Known(prompt, length)
        if prompt_length >= MIN_SHARED:
            is_hit = found is not None and found.length >= prompt_length
            self._metrics.prompt_cache.labels("hit" if is_hit else "miss").inc()
        if found is not None:
            self._prompts.move_to_end(found.prompt.ids)
        return found

    def room(self, num_bytes: int, device: torch.device) -> Room | None:
        """Memory for a prompt, for which others may have to go; none where it would not fit. Those that
        somebody holds, to compute with them, stay what they are."""
        if num_bytes > self._max_bytes:
            return None
        if self._arena is None:
            self._arena = Arena(self._max_bytes, device)
        while (room := self._arena.cut(num_bytes)) is None and self._prompts:
            self._drop_oldest()
        return room

    def keep(self, prompt: KeptPrompt) -> None:
        """Takes a prompt in, and puts out those that have not been of use for longest."""
        self._bytes_per_token = prompt.num_bytes // len(prompt.ids)
        if prompt.ids in self._prompts or prompt.num_bytes > self._max_bytes:
            return
        self._prompts[prompt.ids] = prompt
        self._beginnings[prompt.ids[:MIN_SHARED]].append(prompt)
        self._num_bytes += prompt.num_bytes
        while self._num_bytes > self._max_bytes:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, prompt = self._prompts.popitem(last=False)
        beginning = prompt.ids[:MIN_SHARED]
        self._beginnings[beginning].remove(prompt)
        if not self._beginnings[beginning]:
            del self._beginnings[beginning]
        self._num_bytes -= prompt.num_bytes
