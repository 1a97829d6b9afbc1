"""Attention in two parts is attention to both."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rm_server.cascade import add_context, attend_own, can_cascade
from rm_server.packed_attention import attend


@given(
    chunks=st.integers(1, 4),
    length=st.integers(1, 9),
    before=st.integers(1, 40),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    scale=st.sampled_from([None, 0.05, 1.0]),
    seed=st.integers(0, 2**20),
)
def test_it_is_attention_to_context_and_chunk_together(
    chunks: int, length: int, before: int, heads: tuple[int, int], scale: float | None, seed: int
) -> None:
    drawn = torch.Generator().manual_seed(seed)
    (num_heads, num_key_heads), size = heads, 8

    def rows(num: int, heads: int) -> torch.Tensor:
        return 3 * torch.randn(num, heads, size, generator=drawn)

    def by_chunk(row: torch.Tensor) -> torch.Tensor:
        return row.view(chunks, length, -1, size).transpose(1, 2)

    query = rows(chunks * length, num_heads)
    key, value = rows(chunks * length, num_key_heads), rows(chunks * length, num_key_heads)
    context = rows(before, num_key_heads), rows(before, num_key_heads)
    own, sums = attend_own(by_chunk(query), by_chunk(key), by_chunk(value), scale=scale)
    found = add_context(
        own.transpose(1, 2).flatten(0, 1), sums.transpose(1, 2).flatten(0, 1), query, *context, scale=scale
    )
    keys, values = (
        torch.cat([shared.transpose(0, 1).expand(chunks, -1, -1, -1), by_chunk(part)], dim=2)
        for shared, part in zip(context, (key, value), strict=True)
    )
    expected = attend(by_chunk(query), keys, values, scale=scale).transpose(1, 2).flatten(0, 1)
    assert torch.allclose(found, expected, atol=2e-6 * float(values.abs().max()))


@pytest.mark.parametrize(
    ("window", "softcap", "value_size", "may"),
    [(None, None, 8, True), (4, None, 8, False), (None, 30.0, 8, False), (None, None, 16, False)],
)
def test_models_whose_attention_is_another_do_without(
    window: int | None, softcap: float | None, value_size: int, may: bool
) -> None:
    query, value = torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, value_size)
    assert can_cascade(query, value, window=window, softcap=softcap) is may
