"""Keys and values of prompts, kept for later requests: bounded in bytes, the longest unused go first.

A policy's candidates come to be judged as they finish, in several requests with one prompt; all but the first
find it here. A kept prompt also serves those that begin like it (the same system message, say): what
they have in common is found by comparing tokens. One thread uses it, the one that computes.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from mmap import mmap

import torch

from rm_server.metrics import Metrics
from rm_server.packing import MIN_SHARED, common_length

MAX_SIMILAR = 8  # prompts that are compared with a row in full, of those that begin like it

KeysValues = tuple[torch.Tensor, torch.Tensor]  # each tokens x heads x head size


class Room:
    """Memory for what one prompt keeps, apart from the heap on a CPU: there it would lie among the blocks of
    forward passes, which come and go, and leave gaps that nothing fits."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._bytes = (
            torch.frombuffer(mmap(-1, num_bytes), dtype=torch.uint8)
            if device.type == "cpu"
            else torch.empty(num_bytes, dtype=torch.uint8, device=device)
        )
        self._used = 0

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor; all of them have one dtype. What finds no room goes to the heap."""
        end = self._used + tensor.nbytes
        if end > len(self._bytes):
            return tensor.clone()
        place = self._bytes[self._used : end].view(tensor.dtype).view(tensor.shape)
        self._used = end
        return place.copy_(tensor)


@dataclass(frozen=True, eq=False)
class KeptPrompt:
    """Its tokens, and what every layer made of them."""

    ids: tuple[int, ...]
    layers: dict[int, KeysValues]

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

    def keep(self, prompt: KeptPrompt) -> None:
        """Takes a prompt in, and puts out those that have not been of use for longest."""
        self._bytes_per_token = prompt.num_bytes // len(prompt.ids)
        if prompt.ids in self._prompts or prompt.num_bytes > self._max_bytes:
            return
        self._prompts[prompt.ids] = prompt
        self._beginnings[prompt.ids[:MIN_SHARED]].append(prompt)
        self._num_bytes += prompt.num_bytes
        while self._num_bytes > self._max_bytes:
            self._drop(self._prompts.popitem(last=False)[1])

    def _drop(self, prompt: KeptPrompt) -> None:
        beginning = prompt.ids[:MIN_SHARED]
        self._beginnings[beginning].remove(prompt)
        if not self._beginnings[beginning]:
            del self._beginnings[beginning]
        self._num_bytes -= prompt.num_bytes
