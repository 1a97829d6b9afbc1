"""A key-value cache whose tensors have room from the start: transformers' own copies all of itself for every
token.
"""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """A layer of up to `length` tokens, written in place; more are taken in as DynamicLayer does it."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.room: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts keys and values (B, H, new tokens, D) behind the others; returns all of them."""
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if end > self.length:
            grown: tuple[torch.Tensor, torch.Tensor] = super().update(key_states, value_states)
            return grown
        if not self.room:
            self.lazy_initialization(key_states, value_states)
            self.room = [
                part.new_empty(*part.shape[:2], self.length, part.shape[3])
                for part in (key_states, value_states)
            ]
        for room, part in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, start:end] = part
        self.keys, self.values = (room[:, :, :end] for room in self.room)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps some of the rows."""
        end = self.get_seq_length()
        self.room = [room[indices] for room in self.room]
        self.keys, self.values = (room[:, :, :end] for room in self.room)


def roomy_cache(config: Any, length: int) -> DynamicCache:
    """A cache for `length` tokens of a model; layers that keep only a part stay transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
