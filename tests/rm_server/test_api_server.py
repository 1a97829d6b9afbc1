"""The HTTP door over a fake model: answers, errors, refusals, and clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from rm_server.metrics import Metrics
from tests.rm_server.fakes import (
    BROKEN,
    NOT_A_NUMBER,
    FakeScorer,
    fake_app,
    fake_model,
    leave_amid_body,
    post_scope,
    running,
    sample,
    until,
)

ASK = {"messages": [{"role": "user", "content": "1 2"}], "responses": ["3", "4 5"]}


def client(app: ASGIApp) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://rm")


@contextlib.asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    async with running(app), client(app) as http:
        yield http


def assert_envelope(response: httpx.Response, status: int, code: str | None) -> dict[str, Any]:
    assert response.status_code == status
    assert len(response.content) <= 4096
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert response.headers["x-request-id"]
    assert response.headers["server-timing"]
    return error


async def test_scores_are_raw_logits_less_the_offset(executor: Executor, metrics: Metrics) -> None:
    model = fake_model(FakeScorer(), executor, metrics, reward_offset=0.5)
    async with served(fake_app(model, metrics=metrics)) as http:
        response = await http.post("/score", json=ASK)
    # 1+2+3 = 6 and 1+2+4+5 = 12, less 0.5; 3 + 4 tokens
    assert response.json() == {
        "model": "fake",
        "version": "v1",
        "scores": [5.5, 11.5],
        "usage": {"tokens": 7},
    }
    names = [part.split(";dur=")[0] for part in response.headers["server-timing"].split(", ")]
    assert names == ["queue", "tokenize", "infer"]
    assert float(response.headers["server-timing"].split("infer;dur=")[1]) > 0


async def test_conversations_are_scored_in_order(executor: Executor, metrics: Metrics) -> None:
    conversations = [[{"role": "user", "content": str(i)}] * (1 + i % 3) for i in range(1, 9)]
    async with served(fake_app(fake_model(FakeScorer(), executor, metrics), metrics=metrics)) as http:
        response = await http.post("/score", json={"conversations": conversations})
    assert response.json()["scores"] == [float(i * (1 + i % 3)) for i in range(1, 9)]


async def test_one_checkpoint_with_one_label_is_no_ensemble(executor: Executor, metrics: Metrics) -> None:
    async with served(fake_app(fake_model(FakeScorer(), executor, metrics), metrics=metrics)) as http:
        plain = (await http.post("/score", json=ASK)).json()
        for method in ("mean", "worst", "uncertainty_weighted"):
            refused = await http.post("/score", json={**ASK, "ensemble": method})
            assert assert_envelope(refused, 400, "not_an_ensemble")["param"] == "ensemble"
        members = (await http.post("/score", json={**ASK, "return_members": True})).json()
    assert members == {**plain, "members": {"fake": [6.0, 12.0]}}  # no spread: one member cannot differ


async def test_objectives_are_weighed(executor: Executor, metrics: Metrics) -> None:
    scorer = FakeScorer(num_labels=2)  # logits s and 2 s
    model = fake_model(scorer, executor, metrics, labels=("helpful", "harmless"), reward_offset=1.0)
    async with served(fake_app(model, metrics=metrics)) as http:
        default = await http.post("/score", json=ASK)
        one = await http.post("/score", json={**ASK, "objectives": {"harmless": 2.0}})
        both = await http.post("/score", json={**ASK, "objectives": {"helpful": 1, "harmless": -0.5}})
        unknown = await http.post("/score", json={**ASK, "objectives": {"helpful": 1, "secret": 1}})
        none = await http.post("/score", json={**ASK, "objectives": {}})
    # s = 6: objectives 6 - 1 = 5 and 12 - 1 = 11. s = 12: 11 and 23.
    assert default.json()["scores"] == [8.0, 17.0]
    assert one.json()["scores"] == [22.0, 46.0]
    assert both.json()["scores"] == [-0.5, -0.5]
    error = assert_envelope(unknown, 400, "unknown_objective")
    assert "helpful, harmless" in error["message"]
    assert "secret" not in error["message"]
    assert_envelope(none, 400, "unknown_objective")


async def test_a_logit_that_is_not_finite_is_null(executor: Executor, metrics: Metrics) -> None:
    async with served(fake_app(fake_model(FakeScorer(), executor, metrics), metrics=metrics)) as http:
        response = await http.post("/score", json={**ASK, "responses": [str(NOT_A_NUMBER), "4"]})
    assert response.json()["scores"] == [None, 7.0]
    assert sample(metrics, "not_finite_total", model="fake") == 1


async def test_the_first_model_is_the_default(executor: Executor, metrics: Metrics) -> None:
    models = [
        fake_model(FakeScorer(), executor, metrics, name=name, reward_offset=offset)
        for name, offset in (("one", 0.0), ("two", 2.0))
    ]
    async with served(fake_app(*models, metrics=metrics)) as http:
        answers = [(await http.post("/score", json={**ASK, "model": m})).json() for m in (None, "one", "two")]
        unknown = await http.post("/score", json={**ASK, "model": "three"})
        listed = (await http.get("/v1/models")).json()
    assert [(a["model"], a["scores"][0]) for a in answers] == [("one", 6.0), ("one", 6.0), ("two", 4.0)]
    assert_envelope(unknown, 404, "model_not_found")
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["one", "two"]
    assert {**listed["data"][1], "created": 0} == {
        "id": "two",
        "object": "model",
        "created": 0,
        "owned_by": "bonsai",
        "max_model_len": 50,
        "version": "v1",
        "verified": True,
        "objectives": ["LABEL_0"],
        "members": ["two"],
        "reward_offset": 2.0,
        "calibrated": False,
    }


@pytest.mark.parametrize(
    ("responses", "code", "words"),
    [
        (["3", "1 " * 60], "context_length_exceeded", "62 tokens long, 12 more than the 50"),
        (["999", "1000"], "unknown_token", "Conversation 1 has an unknown token"),
        (["refused"], "chat_template_refused", "refused"),
    ],
)
async def test_what_the_model_cannot_read_is_a_400(
    executor: Executor, metrics: Metrics, responses: list[str], code: str, words: str
) -> None:
    async with served(fake_app(fake_model(FakeScorer(), executor, metrics), metrics=metrics)) as http:
        response = await http.post("/score", json={**ASK, "responses": responses})
    assert words in assert_envelope(response, 400, code)["message"]


async def test_wrong_requests_are_400_and_never_422(executor: Executor, metrics: Metrics) -> None:
    bodies = [b"", b"{", b'{"secret": 1}', b"[1]", b'{"messages": [], "responses": ["secret"]}', b"\xff"]
    async with served(fake_app(fake_model(FakeScorer(), executor, metrics), metrics=metrics)) as http:
        for path in ("/score", "/pooling", "/classify", "/get_reward"):
            for body in bodies:
                response = await http.post(path, content=body, headers={"content-type": "application/json"})
                assert response.status_code == 400, (path, body)
                assert b"secret" not in response.content
                assert response.json()["error"]["type"] == "invalid_request_error"


async def test_unknown_paths_and_methods_and_types(executor: Executor, metrics: Metrics) -> None:
    app = fake_app(fake_model(FakeScorer(), executor, metrics), metrics=metrics)
    async with client(app) as http:
        assert_envelope(await http.get("/secret"), 404, "unknown_path")
        assert_envelope(await http.get("/score/"), 404, "unknown_path")
        wrong_method = await http.get("/score")
        assert_envelope(wrong_method, 405, None)
        assert wrong_method.headers["allow"] == "POST"
        typed = await http.post("/score", content=b"{}", headers={"content-type": "text/plain"})
        assert_envelope(typed, 415, None)


async def test_bodies_are_bounded_declared_or_not(executor: Executor, metrics: Metrics) -> None:
    async def chunks() -> Any:
        for _ in range(100):
            yield b" " * 100

    app = fake_app(fake_model(FakeScorer(), executor, metrics), metrics=metrics, max_body_bytes=1000)
    async with client(app) as http:
        declared = await http.post("/score", content=b" " * 1001)
        streamed = await http.post("/score", content=chunks())
    for response in (declared, streamed):
        assert "larger than 1000 bytes" in assert_envelope(response, 413, None)["message"]


async def test_bodies_in_work_are_bounded_together(executor: Executor, metrics: Metrics) -> None:
    scorer = FakeScorer(held=True)
    body = json.dumps({**ASK, "responses": ["3"]}).encode().ljust(300)  # four such are in work at most
    async with served(
        fake_app(fake_model(scorer, executor, metrics), metrics=metrics, max_body_bytes=300)
    ) as http:
        tasks = [asyncio.create_task(http.post("/score", content=body)) for _ in range(5)]
        await until(lambda: sample(metrics, "rejected_total") == 1)
        scorer.release(5)
        answers = await asyncio.gather(*tasks)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 200, 429]


async def test_a_full_queue_is_429_with_retry_after(executor: Executor, metrics: Metrics) -> None:
    scorer = FakeScorer(held=True)
    app = fake_app(fake_model(scorer, executor, metrics, max_queue_tokens=8), metrics=metrics)
    async with served(app) as http:
        # Token ids, because the one thread of this test, which also tokenises, is inside the held batch.
        first = asyncio.create_task(http.post("/pooling", json={"input": [1]}))
        await scorer.entered()
        second = asyncio.create_task(http.post("/pooling", json={"input": [1] * 7}))
        await until(lambda: sample(metrics, "queue_tokens") == 7)
        third = await http.post("/pooling", json={"input": [1] * 2})
        scorer.release(2)
        assert [(await task).status_code for task in (first, second)] == [200, 200]
    error = assert_envelope(third, 429, "queue_full")
    assert error["type"] == "rate_limit_error"
    assert third.headers["retry-after"] == "1"


async def test_a_model_that_breaks_is_a_500_and_the_server_goes_on(
    executor: Executor, metrics: Metrics
) -> None:
    async with served(fake_app(fake_model(FakeScorer(), executor, metrics), metrics=metrics)) as http:
        broken = await http.post("/score", json={**ASK, "responses": [str(BROKEN)]})
        after = await http.post("/score", json=ASK)
    assert_envelope(broken, 500, "scoring_failed")
    assert after.status_code == 200


async def test_a_bug_is_a_500_in_the_envelope(executor: Executor, metrics: Metrics) -> None:
    async with served(fake_app(fake_model(FakeScorer(), executor, metrics), metrics=metrics)) as http:
        # The fake formatter, unlike a real one, cannot read words.
        response = await http.post("/score", json={**ASK, "responses": ["secret"]})
    assert_envelope(response, 500, None)
    assert b"secret" not in response.content


async def test_health(executor: Executor, metrics: Metrics) -> None:
    idle = fake_app(fake_model(FakeScorer(), executor, metrics), metrics=metrics)
    async with client(idle) as http:
        assert (await http.get("/health/live")).status_code == 200
        assert (await http.get("/health/ready")).status_code == 503  # nobody serves the queue yet
        async with running(idle):
            for path in ("/health", "/health/live", "/health/ready"):
                assert (await http.get(path)).status_code == 200
        assert (await http.get("/health/ready")).status_code == 503


async def test_request_ids_come_back_when_they_are_plain(executor: Executor, metrics: Metrics) -> None:
    async with client(fake_app(fake_model(FakeScorer(), executor, metrics), metrics=metrics)) as http:
        mine = await http.get("/health", headers={"x-request-id": "req-1"})
        odd = await http.get("/health", headers={"x-request-id": 'a"b' * 100})
        ids = {(await http.get("/health")).headers["x-request-id"] for _ in range(3)}
    assert mine.headers["x-request-id"] == "req-1"
    assert len(odd.headers["x-request-id"]) == 32
    assert len(ids) == 3


async def test_a_client_that_goes_away_takes_its_work_with_it(executor: Executor, metrics: Metrics) -> None:
    scorer = FakeScorer(held=True)
    app = fake_app(fake_model(scorer, executor, metrics), metrics=metrics)
    async with served(app) as http:
        first = asyncio.create_task(http.post("/score", json=ASK))
        await scorer.entered()
        leaving: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        body = json.dumps({"input": [[6, 6, 6]]}).encode()
        leaving.put_nowait({"type": "http.request", "body": body, "more_body": False})
        sent: asyncio.Queue[Any] = asyncio.Queue()
        gone = asyncio.ensure_future(app(post_scope("/pooling"), leaving.get, sent.put))
        await until(lambda: sample(metrics, "queue_tokens") == 3)
        leaving.put_nowait({"type": "http.disconnect"})
        await gone
        await until(lambda: sample(metrics, "queue_tokens") == 0)
        scorer.release(2)
        await first
    assert [6, 6, 6] not in [ids for batch in scorer.batches for ids in batch]
    assert sample(metrics, "disconnects_total") == 1
    assert sample(metrics, "requests_total", route="/pooling", status="499") == 1
    assert sample(metrics, "in_flight_requests") == 0


async def test_a_client_that_goes_away_amid_its_body(executor: Executor, metrics: Metrics) -> None:
    await leave_amid_body(fake_app(fake_model(FakeScorer(), executor, metrics), metrics=metrics), "/score")
    assert sample(metrics, "disconnects_total") == 1
