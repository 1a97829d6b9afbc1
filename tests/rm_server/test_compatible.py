"""The forms of vLLM and OpenRLHF: raw logits, rendered text as rendered."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import pytest

from rm_server.metrics import Metrics
from tests.rm_server.fakes import NOT_A_NUMBER, FakeScorer, fake_app, fake_model
from tests.rm_server.test_api_server import assert_envelope, served


@pytest.fixture
def app(executor: Executor, metrics: Metrics) -> Any:
    return fake_app(fake_model(FakeScorer(), executor, metrics, reward_offset=0.5), metrics=metrics)


@pytest.mark.parametrize(
    ("asked", "expected", "tokens"),
    [
        ({"input": "1 2"}, [[3.0]], 2),
        ({"input": ["1 2", "5"]}, [[3.0], [5.0]], 3),
        ({"input": [4, 5]}, [[9.0]], 2),
        ({"input": [[4, 5], [6]]}, [[9.0], [6.0]], 3),
        ({"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]}, [[3.0]], 2),
        # what vLLM's own clients send, with a field that neither server knows
        (
            {"input": "1", "model": "fake", "use_activation": False, "encoding_format": "float", "x": 1},
            [[1.0]],
            1,
        ),
        (
            {
                "messages": [{"role": "user", "content": [{"type": "text", "text": "1"}]}],
                "task": "classify",
                "add_generation_prompt": False,
                "continue_final_message": False,
                "chat_template_kwargs": {},
                "priority": 0,
                "user": "somebody",
            },
            [[1.0]],
            1,
        ),
        ({"input": [str(NOT_A_NUMBER)]}, [[None]], 1),
    ],
)
async def test_pooling(app: Any, asked: dict[str, Any], expected: list[list[float]], tokens: int) -> None:
    async with served(app) as http:
        answer = (await http.post("/pooling", json=asked)).json()
    assert answer["object"] == "list"
    assert answer["model"] == "fake"
    assert answer["data"] == [
        {"index": i, "object": "pooling", "data": row} for i, row in enumerate(expected)
    ]
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"input": "1", "use_activation": True}, "use_activation"),
        ({"input": "1", "activation": True}, "activation"),  # as older ones call it
        ({"input": "1", "softmax": True}, "softmax"),
        ({"input": "1", "task": "token_classify"}, "task"),
        ({"input": "1", "dimensions": 1}, "dimensions"),
        ({"input": "1", "encoding_format": "base64"}, "encoding_format"),
        ({"input": "1", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"input": "1", "add_special_tokens": True}, "add_special_tokens"),
        (
            {"messages": [{"role": "user", "content": "1"}], "add_generation_prompt": True},
            "add_generation_prompt",
        ),
        ({"messages": [{"role": "user", "content": "1"}], "chat_template": "x"}, "chat_template"),
        (
            {"messages": [{"role": "user", "content": "1"}], "chat_template_kwargs": {"x": 1}},
            "chat_template_kwargs",
        ),
        (
            {"messages": [{"role": "assistant", "content": "1"}], "continue_final_message": True},
            "continue_final_message",
        ),
        ({"messages": []}, "messages"),
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ["1", [1]]}, "input"),
        ({"input": "1", "messages": []}, "input"),
    ],
)
async def test_refuses_what_would_need_other_numbers(app: Any, asked: dict[str, Any], param: str) -> None:
    async with served(app) as http:
        for path in ("/pooling", "/classify"):
            assert assert_envelope(await http.post(path, json=asked), 400, None)["param"] == param


async def test_token_ids_are_checked(app: Any) -> None:
    async with served(app) as http:
        for ids in ([-1], [1000], [2**63 - 1]):
            assert_envelope(await http.post("/pooling", json={"input": ids}), 400, "unknown_token")
        assert_envelope(await http.post("/pooling", json={"input": [[]]}), 400, "empty_conversation")
        assert_envelope(
            await http.post("/pooling", json={"input": [[1] * 51]}), 400, "context_length_exceeded"
        )


async def test_classify_names_the_best_label(executor: Executor, metrics: Metrics) -> None:
    scorer = FakeScorer(num_labels=2)
    app = fake_app(fake_model(scorer, executor, metrics, labels=("helpful", "harmless")), metrics=metrics)
    async with served(app) as http:
        answer = (await http.post("/classify", json={"input": ["1 2", str(NOT_A_NUMBER)]})).json()
    assert answer["data"] == [
        {"index": 0, "label": "harmless", "probs": [3.0, 6.0], "num_classes": 2},
        {"index": 1, "label": "helpful", "probs": [None, None], "num_classes": 2},
    ]


async def test_get_reward(app: Any) -> None:
    # What OpenRLHF's client sends; it reads all three fields of the answer.
    asked = {"query": ["1 2", "5"], "prompts": ["1", "5"], "labels": ["a", None]}
    async with served(app) as http:
        answer = await http.post("/get_reward", json=asked)
        single = await http.post("/get_reward", json={"query": "7"})
    assert answer.json() == {"rewards": [3.0, 5.0], "scores": [3.0, 5.0], "extra_logs": {}}
    assert single.json()["rewards"] == [7.0]


async def test_get_reward_has_no_word_for_several_objectives(executor: Executor, metrics: Metrics) -> None:
    model = fake_model(FakeScorer(num_labels=2), executor, metrics, labels=("helpful", "harmless"))
    async with served(fake_app(model, metrics=metrics)) as http:
        assert_envelope(await http.post("/get_reward", json={"query": ["1"]}), 400, None)
