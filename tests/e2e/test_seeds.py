"""Seeds: the same request on the same stack gives the same answer, in float32.

Last of the folder by name: vLLM's per-request seeds are fragile on a CPU, and an engine that ends here ends
for all tests after.
"""

import asyncio
from typing import Any

import httpx
import pytest

from tests.e2e.commands import Served

SEEDS = range(0, 88, 11)  # far apart: candidate i samples with seed + i
QUESTION = "How can I clean the boat?"


def candidates(served: Served, seed: int | None, best_of: int, repeats: int = 1) -> list[str]:
    """The candidates for a question that is asked so often in one message."""
    messages = [{"role": "user", "content": " ".join([QUESTION] * repeats)}]
    body: dict[str, Any] = {"model": served.model, "messages": messages, "max_tokens": 40}
    if best_of > 1:
        body |= {"best_of": best_of, "alignment": {"return_candidates": True}}
    if seed is not None:
        body["seed"] = seed
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=120).raise_for_status().json()
    if best_of == 1:
        return [answer["choices"][0]["message"]["content"] or ""]
    return [found["message"]["content"] or "" for found in answer["alignment"]["candidates"]]


def test_the_same_seed_gives_the_same_candidates(served: Served) -> None:
    first = candidates(served, 7, 4)
    assert candidates(served, 7, 4) == first
    assert len(set(first)) > 1
    assert candidates(served, 1007, 4) != first


def test_candidate_i_samples_with_seed_plus_i(served: Served) -> None:
    together = candidates(served, 7, 4)
    assert together == [text for i in range(4) for text in candidates(served, 7 + i, 1)]


async def test_company_does_not_change_a_seeded_answer(served: Served) -> None:
    """Together with others, seeded and not, of different lengths, each gets what it gets alone."""
    alone = [await asyncio.to_thread(candidates, served, seed, 4, 1 + seed % 5) for seed in SEEDS]
    seeded = [asyncio.to_thread(candidates, served, seed, 4, 1 + seed % 5) for seed in SEEDS]
    others = [asyncio.to_thread(candidates, served, None, 4, 8) for _ in range(4)]
    together = await asyncio.gather(*seeded, *others)
    assert together[: len(alone)] == alone


@pytest.mark.parametrize("seed", [-1, None])
def test_no_seed_is_another_answer_each_time(seed: int | None, served: Served) -> None:
    assert candidates(served, seed, 4) != candidates(served, seed, 4)
