"""The attention of chunks is that of a plain mask over all of their text."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from rm_server.packed_attention import (
    MAX_MASK_ELEMENTS,
    Context,
    Group,
    NotPackableError,
    Packed,
    attend,
    packed_attention,
)


class Layer(torch.nn.Module):
    layer_idx = 0
    is_causal = True


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def by_hand(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """The textbook's attention of all positions of one text, of which the last L are wanted."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    at = torch.arange(key.shape[2])[-query.shape[2] :, None]
    to = torch.arange(key.shape[2])
    seen = (to <= at) & (to > at - (window or key.shape[2]))
    scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize(("num_before", "length"), [(0, 9), (7, 3), (30, 1)])
def test_attend(heads: int, window: int | None, softcap: float | None, num_before: int, length: int) -> None:
    query = random(3, 4, length, 8)
    key, value = (random(3, heads, num_before + length, 8) for _ in range(2))
    ours = attend(query, key, value, window=window, softcap=softcap)
    torch.testing.assert_close(ours, by_hand(query, key, value, window=window, softcap=softcap))


@pytest.mark.parametrize("window", [None, 700])
def test_long_texts_attend_in_blocks(window: int | None) -> None:
    length, num_before = 2500, 500
    assert length * (length + num_before) > MAX_MASK_ELEMENTS  # or there would be one block
    query = random(1, 1, length, 4)
    key, value = (random(1, 1, length + num_before, 4) for _ in range(2))
    torch.testing.assert_close(
        attend(query, key, value, window=window), by_hand(query, key, value, window=window)
    )


def test_chunks_see_themselves_and_their_context_alone() -> None:
    prompt, short, long, other = slice(0, 4), slice(8, 10), slice(4, 8), slice(10, 13)
    groups = [
        Group(prompt, [4], Context()),
        Group(slice(4, 10), [4, 2], Context(None, (prompt,))),
        Group(other, [3], Context()),
    ]
    query, key, value = (random(1, 2, 13, 8) for _ in range(3))
    out, _ = packed_attention(Layer(), query, key, value, None, packed=Packed(groups, []))
    for before, chunk in (((), prompt), ((prompt,), short), ((prompt,), long), ((), other)):
        places = [place for part in (*before, chunk) for place in range(part.start, part.stop)]
        alone = scaled_dot_product_attention(
            *(part[:, :, places] for part in (query, key, value)), is_causal=True
        )
        torch.testing.assert_close(out[0, chunk], alone[0].transpose(0, 1)[-(chunk.stop - chunk.start) :])


def test_the_beginning_of_a_context() -> None:
    context = Context(None, (slice(10, 14), slice(30, 40)))
    assert context.first(3) == Context(None, (slice(10, 13),))
    assert context.first(4) == Context(None, (slice(10, 14),))
    assert context.first(6) == Context(None, (slice(10, 14), slice(30, 32)))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"packed": None}, "no packed row"),
        ({"s_aux": torch.zeros(1)}, "takes s_aux"),
        ({"attention_mask": torch.zeros(1)}, "no packed row"),
        ({"dropout": 0.1}, "no packed row"),
    ],
)
def test_what_is_not_done_here_is_refused(asked: dict[str, object], message: str) -> None:
    query = random(1, 2, 3, 8)
    given = {"attention_mask": None, "packed": Packed([], []), **asked}
    with pytest.raises(NotPackableError, match=message):
        packed_attention(Layer(), query, query, query, **given)


def test_attention_that_looks_ahead_is_refused() -> None:
    query = random(1, 2, 3, 8)
    with pytest.raises(NotPackableError, match="looks ahead"):
        packed_attention(torch.nn.Module(), query, query, query, None, packed=Packed([], []))
