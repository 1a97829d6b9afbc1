"""Sharing a prompt, in a batch or with an earlier one, changes no score, in any architecture."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_server.metrics import Metrics
from rm_server.packing import TextIds
from rm_server.reward_model import LOW_PRECISION_TOLERANCE, TOLERANCE, RewardModel
from tests.rm_server.architectures import PACKED, PADDED, VOCABULARY, alone, build
from tests.rm_server.fakes import sample

# A part is a seed and a length: a text of random tokens that another part may repeat or go on from.
parts = st.tuples(st.integers(0, 3), st.integers(1, 60))
texts = st.tuples(st.lists(parts, min_size=1, max_size=3), st.integers(0, 120))
batches = st.lists(texts, min_size=1, max_size=8)


@cache
def plain(name: str) -> Any:
    return build(name)


@cache
def served(name: str) -> RewardModel:
    """With room for a few prompts only, so that some are put out."""
    return RewardModel(build(name), Metrics(), prompt_cache_bytes=200_000)


def text(parts: list[tuple[int, int]], prompt_length: int) -> TextIds:
    """Its tokens; the hint on its prompt may be anything."""
    ids = TextIds()
    for seed, length in parts:
        generator = torch.Generator().manual_seed(seed)
        ids += torch.randint(3, VOCABULARY, (60,), generator=generator).tolist()[:length]
    ids.prompt_length = prompt_length
    return ids


def assert_equal_to_alone(name: str, batch: list[TextIds]) -> None:
    scores = served(name).score(batch)
    for [score], ids in zip(scores, batch, strict=True):
        expected = alone(name, plain(name), list(ids))
        assert abs(score - expected) <= TOLERANCE * max(1, abs(expected))


@pytest.mark.parametrize("name", PACKED)
@settings(deadline=None, max_examples=30)
@given(st.lists(batches, min_size=1, max_size=2))
def test_scores_are_those_of_texts_alone(name: str, requests: list[list[Any]]) -> None:
    assert served(name).why_not_packed is None
    for request in requests:  # the later ones find what the earlier ones left
        assert_equal_to_alone(name, [text(*each) for each in request])


@pytest.mark.parametrize("name", PADDED)
@settings(deadline=None, max_examples=5)
@given(batches)
def test_what_cannot_be_packed_reads_full_texts(name: str, request: list[Any]) -> None:
    assert served(name).why_not_packed
    assert_equal_to_alone(name, [text(*each) for each in request])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bert-bidirectional", "no linear layer on the last token"),
        ("bloom-alibi", "differ"),
        ("gpt-oss-sinks", "s_aux"),
        ("phi3-rotation-of-batch", "longest text of a batch"),
        ("jamba-recurrent", "layers"),
    ],
)
def test_it_says_why_texts_are_read_in_full(name: str, reason: str) -> None:
    assert reason in (served(name).why_not_packed or "")


def test_weights_that_look_ahead_are_not_packed() -> None:
    model = build("gemma3-window", use_bidirectional_attention=True)
    assert RewardModel(model, Metrics()).why_not_packed


def test_fifteen_answers_cost_one_prompt(metrics: Metrics) -> None:
    judge = RewardModel(build("llama"), metrics, prompt_cache_bytes=2**20)
    judge.score([text([(0, 40), (2, length)], 40) for length in range(1, 16)])
    # All begin with 41 tokens, computed once. Some share more, too little to be worth another chunk.
    assert sample(metrics, "computed_tokens_total") == 41 + sum(range(15))


def test_a_later_request_with_the_same_prompt_computes_its_answers_alone(metrics: Metrics) -> None:
    judge = RewardModel(build("llama"), metrics, prompt_cache_bytes=2**20)
    judge.score([text([(0, 40), (1, 10)], 40)])
    assert sample(metrics, "prompt_cache_total", outcome="miss") == 1
    before = sample(metrics, "computed_tokens_total")
    judge.score([text([(0, 40), (2, 9)], 40), text([(0, 40), (3, 8)], 40)])
    assert sample(metrics, "computed_tokens_total") - before == 9 + 8
    assert sample(metrics, "prompt_cache_total", outcome="hit") == 2


def test_with_the_cache_off_nothing_is_kept(metrics: Metrics) -> None:
    judge = RewardModel(build("llama"), metrics, prompt_cache_bytes=0)
    row = text([(0, 40), (1, 10)], 40)
    assert judge.score([row]) == judge.score([row])
    assert sample(metrics, "computed_tokens_total") == 100


@pytest.mark.parametrize("name", ["llama", "qwen2-window", "gemma2-window-softcap"])
def test_bfloat16_stays_near_float32(name: str) -> None:
    rows = [text([(k % 4, 40), (k % 3, 20 + k)], 40) for k in range(1, 40)]
    exact = torch.tensor([alone(name, plain(name), list(ids)) for ids in rows])
    judge = RewardModel(build(name).bfloat16(), Metrics(), prompt_cache_bytes=2**20)
    assert judge.why_not_packed is None
    for _ in range(2):  # prompts computed, then known
        error = torch.tensor(judge.score(rows))[:, 0] - exact
        assert 0 < error.square().mean().sqrt() <= LOW_PRECISION_TOLERANCE * exact.std()
