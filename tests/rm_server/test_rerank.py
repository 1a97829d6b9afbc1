"""/rerank as Jina's, Cohere's and vLLM's clients send it."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import pytest

from rm_server.metrics import Metrics
from tests.rm_server.fakes import NOT_A_NUMBER, FakeScorer, fake_app, fake_model
from tests.rm_server.test_api_server import assert_envelope, served

ASK: dict[str, Any] = {"query": "1", "documents": ["3", "7 1", "3"]}


@pytest.fixture
def app(executor: Executor, metrics: Metrics) -> Any:
    return fake_app(fake_model(FakeScorer(), executor, metrics, reward_offset=0.5), metrics=metrics)


async def test_documents_are_ranked_as_responses(app: Any) -> None:
    async with served(app) as http:
        scores = await http.post(
            "/score", json={"messages": [{"role": "user", "content": "1"}], "responses": ASK["documents"]}
        )
        answers = [(await http.post(path, json=ASK)).json() for path in ("/rerank", "/v1/rerank")]
    assert scores.json()["scores"] == [3.5, 8.5, 3.5]
    for answer in answers:
        assert answer["results"] == [  # best first, equal ones as they came
            {"index": 1, "relevance_score": 8.5, "document": {"text": "7 1"}},
            {"index": 0, "relevance_score": 3.5, "document": {"text": "3"}},
            {"index": 2, "relevance_score": 3.5, "document": {"text": "3"}},
        ]
        assert answer["model"] == "fake"
        assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
        assert answer["id"].startswith("rerank-")


@pytest.mark.parametrize(
    ("path", "more", "expected"),
    [
        ("/v2/rerank", {}, [{"index": 1, "relevance_score": 8.5}]),
        ("/v1/rerank", {"return_documents": False}, [{"index": 1, "relevance_score": 8.5}]),
        (
            "/v2/rerank",
            {"return_documents": True},
            [{"index": 1, "relevance_score": 8.5, "document": {"text": "7 1"}}],
        ),
        # what their clients send besides
        (
            "/v2/rerank",
            {"model": "fake", "max_tokens_per_doc": 4096, "priority": 0},
            [{"index": 1, "relevance_score": 8.5}],
        ),
        (
            "/v1/rerank",
            {"documents": [{"text": "3"}, {"text": "7 1", "title": "x"}], "return_documents": False},
            [{"index": 1, "relevance_score": 8.5}],
        ),
    ],
)
async def test_top_n_and_documents(app: Any, path: str, more: dict[str, Any], expected: list[Any]) -> None:
    async with served(app) as http:
        answer = (await http.post(path, json={**ASK, "top_n": 1, **more})).json()
    assert answer["results"] == expected


async def test_more_than_there_are_and_none_are_all(app: Any) -> None:
    async with served(app) as http:
        for top_n in (0, 3, 99, None):
            answer = (await http.post("/rerank", json={**ASK, "top_n": top_n})).json()
            assert len(answer["results"]) == 3


async def test_a_document_without_a_reward_is_left_out(app: Any) -> None:
    async with served(app) as http:
        answer = (await http.post("/rerank", json={**ASK, "documents": [str(NOT_A_NUMBER), "2"]})).json()
    assert [result["index"] for result in answer["results"]] == [1]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"documents": []}, "documents"),
        ({"top_n": -1}, "top_n"),
        ({"query": 3}, "query"),
        ({"documents": ["3", 4]}, "documents[1]"),
        ({"documents": [{"title": "x"}]}, "documents[0]"),
    ],
)
async def test_refuses(app: Any, wrong: dict[str, Any], param: str) -> None:
    async with served(app) as http:
        for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
            refused = await http.post(path, json={**ASK, **wrong})
            assert (assert_envelope(refused, 400, None)["param"] or "").startswith(param.split("[")[0])
