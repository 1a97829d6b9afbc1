"""Sampling token by token: the right distribution, ends, and rows that do not depend on one another."""

from typing import Any

import pytest
import torch

from trainers.errors import DivergedError
from trainers.generation import draw, generate

PROMPTS = [[5 + row] * (1 + row % 7) for row in range(24)]


def sample(
    model: Any, ends: list[int], prompts: list[list[int]] = PROMPTS, length: int = 12
) -> list[list[int]]:
    numbers = torch.rand(
        len(prompts), length, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    return generate(
        model,
        prompts,
        end_token_ids=ends,
        max_new_tokens=length,
        temperature=1.0,
        numbers_BL=numbers,
    )


def test_a_draw_is_where_the_cumulative_probability_passes_the_number() -> None:
    logits = torch.tensor([[0.1, 0.0, 0.6, 0.3]]).log().expand(5, -1)
    drawn = draw(logits, 1.0, torch.tensor([0.0, 0.09, 0.11, 0.69, 0.71], dtype=torch.float64))
    assert drawn.tolist() == [0, 0, 2, 2, 3]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_even_numbers_draw_each_token_as_often_as_it_is_likely(temperature: float) -> None:
    logits = torch.tensor([1.0, -1.0, 0.5, 2.0])
    numbers = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    counts = torch.bincount(draw(logits.expand(4000, -1), temperature, numbers), minlength=4) / 4000
    assert counts.tolist() == pytest.approx(torch.softmax(logits / temperature, -1).tolist(), abs=5e-4)


def test_temperature_0_takes_the_likeliest() -> None:
    assert draw(torch.tensor([[0.0, 3.0, 1.0]]), 0.0, torch.zeros(1)).tolist() == [1]


def test_a_draw_from_what_is_not_finite_is_refused() -> None:
    with pytest.raises(DivergedError, match="not finite"):
        draw(torch.tensor([[0.0, torch.nan]]), 1.0, torch.zeros(1, dtype=torch.float64))


def test_rows_that_end_change_nothing_for_the_others(model: Any) -> None:
    """The same random numbers: ending early is the same as going on and cutting off."""
    ends = list(range(40, 90))
    whole, ended = sample(model, []), sample(model, ends)
    cut = [row[: next((at + 1 for at, id_ in enumerate(row) if id_ in ends), len(row))] for row in whole]
    assert ended == cut
    assert len({len(row) for row in ended}) > 4
    assert {len(row) for row in whole} == {12}


def test_a_row_is_what_it_would_be_with_another_neighbour(model: Any) -> None:
    """Left padding is masked, and positions count from the prompt's own first token."""
    with_long = sample(model, [], [[9, 8], [7] * 30])[0]
    with_short = sample(model, [], [[9, 8], [7]])[0]
    assert with_long == with_short
