"""A cache with room holds what transformers' own holds."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from trainers.kv_cache import RoomyLayer, roomy_cache


@pytest.mark.parametrize("length", [4, 8, 100])
def test_it_holds_the_same_within_its_room_and_beyond(length: int) -> None:
    random = torch.Generator().manual_seed(0)
    usual, roomy = DynamicCache(), RoomyLayer(length)
    for new in (5, 1, 1, 3):
        keys, values = (torch.randn(3, 2, new, 4, generator=random) for _ in range(2))
        expected = usual.update(keys, values, 0)
        found = roomy.update(keys, values)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert roomy.get_seq_length() == 10


def test_rows_are_let_go_of_and_the_rest_goes_on() -> None:
    layer = RoomyLayer(4)
    ones = torch.ones(3, 1, 2, 1) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    layer.update(ones, ones)
    layer.batch_select_indices(torch.tensor([2, 0]))
    keys, values = layer.update(*(torch.full((2, 1, 1, 1), 9.0) for _ in range(2)))
    assert keys.flatten(1).tolist() == values.flatten(1).tolist() == [[3, 3, 9], [1, 1, 9]]


def test_layers_of_a_window_stay_as_they_are(model: Any) -> None:
    cache = roomy_cache(model.config, 8)
    assert {type(layer) for layer in cache.layers} == {RoomyLayer}
    config = type(model.config)(**model.config.to_dict() | {"sliding_window": 4})
    config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    assert {type(layer) for layer in roomy_cache(config, 8).layers} == {DynamicSlidingWindowLayer}
