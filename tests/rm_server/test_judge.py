"""Ensembles, objectives and doubt over HTTP, on members whose rewards are plain."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

import pytest

from rm_server.calibration import Calibration, Distribution
from rm_server.ensemble import Method
from rm_server.judge import Judge, Options
from rm_server.metrics import Metrics
from tests.rm_server.fakes import NOT_A_NUMBER, FakeScorer, alone, fake_app, fake_model, sample
from tests.rm_server.test_api_server import ASK, assert_envelope, served

SCORES = Distribution(2000, 0.0, 1.0, (0.001, 0.5, 0.999), (-20.0, 0.0, 10.0))
SPREAD = Distribution(2000, 1.0, 1.0, (0.5, 0.99), (1.0, 4.0))


def ensemble(
    executor: Executor,
    metrics: Metrics,
    *,
    offsets: Mapping[str, float],
    method: Method = "mean",
    num_labels: int = 1,
    calibration: Calibration | None = None,
) -> Judge:
    """Members that give the sum of the ids less their own offset."""
    labels = [f"LABEL_{k}" for k in range(num_labels)]
    members = {
        name: fake_model(
            FakeScorer(num_labels=num_labels),
            executor,
            metrics,
            name=name,
            labels=labels,
            reward_offset=offset,
            version=f"v-{name}",
        )
        for name, offset in offsets.items()
    }
    return Judge("panel", members, metrics, Options(method, 0.5), calibration)


@pytest.fixture
def panel(executor: Executor, metrics: Metrics) -> Judge:
    return ensemble(executor, metrics, offsets={"a": 0.0, "b": 3.0})


async def test_an_ensemble_combines_its_members(panel: Judge, metrics: Metrics) -> None:
    async with served(fake_app(panel, metrics=metrics)) as http:
        plain = (await http.post("/score", json=ASK)).json()
        answers = {
            method: (await http.post("/score", json={**ASK, "ensemble": method})).json()
            for method in ("mean", "worst", "uncertainty_weighted")
        }
        members = (await http.post("/score", json={**ASK, "return_members": True})).json()
    # Members give 6 and 3, and 12 and 9: the variance is 2.25, its root 1.5. Both read 3 + 4 tokens.
    assert plain == {
        "model": "panel",
        "version": "v-a+v-b",
        "scores": [4.5, 10.5],
        "usage": {"tokens": 14},
        "spread": [1.5, 1.5],
    }
    assert answers["mean"] == plain
    assert answers["worst"] == {**plain, "scores": [3.0, 9.0]}
    assert answers["uncertainty_weighted"] == {**plain, "scores": [3.375, 9.375]}
    assert members == {**plain, "members": {"a": [6.0, 12.0], "b": [3.0, 9.0]}}
    assert sample(metrics, "spread_count", model="panel") == 10
    assert sample(metrics, "spread_sum", model="panel") == 15


async def test_the_servers_method_holds_where_a_request_says_none(
    executor: Executor, metrics: Metrics
) -> None:
    judge = ensemble(executor, metrics, offsets={"a": 0.0, "b": 3.0}, method="worst")
    async with served(fake_app(judge, metrics=metrics)) as http:
        plain = (await http.post("/score", json=ASK)).json()
        mean = (await http.post("/score", json={**ASK, "ensemble": "mean"})).json()
    assert plain["scores"] == [3.0, 9.0]
    assert mean["scores"] == [4.5, 10.5]


async def test_a_member_without_a_number_leaves_none(panel: Judge, metrics: Metrics) -> None:
    asked = {**ASK, "responses": [str(NOT_A_NUMBER), "4"], "return_members": True}
    async with served(fake_app(panel, metrics=metrics)) as http:
        answer = (await http.post("/score", json=asked)).json()
    assert answer["scores"] == [None, 5.5]
    assert answer["spread"] == [None, 1.5]
    assert answer["members"] == {"a": [None, 7.0], "b": [None, 4.0]}


async def test_labels_of_one_checkpoint_are_members_where_a_request_says_so(
    executor: Executor, metrics: Metrics
) -> None:
    judge = ensemble(executor, metrics, offsets={"a": 1.0}, num_labels=2)  # s - 1 and 2 s - 1
    async with served(fake_app(judge, metrics=metrics)) as http:
        plain = (await http.post("/score", json=ASK)).json()
        worst = (await http.post("/score", json={**ASK, "ensemble": "worst", "return_members": True})).json()
        both = await http.post("/score", json={**ASK, "ensemble": "worst", "objectives": {"LABEL_0": 1}})
    assert plain["scores"] == [8.0, 17.0]
    assert worst["scores"] == [5.0, 11.0]
    assert worst["members"] == {"LABEL_0": [5.0, 11.0], "LABEL_1": [11.0, 23.0]}
    assert worst["spread"] == [3.0, 6.0]
    assert_envelope(both, 400, "not_an_ensemble")


async def test_members_weigh_their_labels_before_they_are_combined(
    executor: Executor, metrics: Metrics
) -> None:
    judge = ensemble(executor, metrics, offsets={"a": 0.0, "b": 3.0}, num_labels=2)
    asked = {**ASK, "ensemble": "worst", "objectives": {"LABEL_1": 2.0}, "return_members": True}
    async with served(fake_app(judge, metrics=metrics)) as http:
        answer = (await http.post("/score", json=asked)).json()
    assert answer["members"] == {"a": [24.0, 48.0], "b": [18.0, 42.0]}  # 2 (2 s - offset)
    assert answer["scores"] == [18.0, 42.0]


async def test_models_are_weighed_by_their_names(executor: Executor, metrics: Metrics) -> None:
    helpful = fake_model(FakeScorer(), executor, metrics, name="helpful", version="v1")
    harmless = fake_model(FakeScorer(), executor, metrics, name="harmless", version="v2", reward_offset=5.0)
    async with served(fake_app(helpful, harmless, metrics=metrics)) as http:
        asked = {**ASK, "objectives": {"helpful": 1.0, "harmless": 2.0}, "return_members": True}
        answer = (await http.post("/score", json=asked)).json()
        one = (await http.post("/score", json={**ASK, "objectives": {"harmless": -1.0}})).json()
        unknown = await http.post("/score", json={**ASK, "objectives": {"helpful": 1, "secret": 1}})
        combined = await http.post("/score", json={**asked, "ensemble": "worst"})
    assert answer == {
        "model": "helpful+harmless",
        "version": "v1+v2",
        "scores": [8.0, 26.0],  # 6 + 2 x 1 and 12 + 2 x 7
        "members": {"helpful": [6.0, 12.0], "harmless": [1.0, 7.0]},
        "usage": {"tokens": 14},
    }
    assert (one["model"], one["scores"]) == ("harmless", [-1.0, -7.0])
    message = assert_envelope(unknown, 400, "unknown_objective")["message"]
    assert "LABEL_0" in message
    assert "helpful, harmless" in message
    assert "secret" not in message
    assert_envelope(combined, 400, "not_an_ensemble")


async def test_a_length_penalty_is_taken_off_for_each_token_of_the_response(
    executor: Executor, metrics: Metrics
) -> None:
    async with served(fake_app(fake_model(FakeScorer(), executor, metrics), metrics=metrics)) as http:
        answer = (await http.post("/score", json={**ASK, "length_penalty": 0.5})).json()
        negative = await http.post("/score", json={**ASK, "length_penalty": -0.5})
    assert answer["scores"] == [5.5, 11.0]  # 6 - 0.5 x 1 and 12 - 0.5 x 2
    assert assert_envelope(negative, 400, None)["param"] == "length_penalty"


async def test_a_response_out_of_the_calibrated_range_is_doubted(
    executor: Executor, metrics: Metrics
) -> None:
    model = fake_model(FakeScorer(), executor, metrics, calibration=Calibration({"mean": SCORES}))
    asked: dict[str, Any] = {**ASK, "responses": ["2", "4 5", str(NOT_A_NUMBER)]}
    async with served(fake_app(model, metrics=metrics)) as http:
        answer = (await http.post("/score", json={**asked, "length_penalty": 100})).json()
        weighed = (await http.post("/score", json={**asked, "objectives": {"LABEL_0": 1.0}})).json()
        listed = (await http.get("/v1/models")).json()
    # 5 is halfway from the median to 10, 12 is beyond it; the penalty, which is not the model's, is not seen.
    assert answer["percentiles"] == [pytest.approx(0.7495), 0.999, None]
    assert answer["out_of_distribution"] == [False, True, None]
    assert sample(metrics, "out_of_distribution_total", model="fake") == 1
    assert "percentiles" not in weighed
    assert "out_of_distribution" not in weighed
    assert listed["data"][0]["calibrated"] is True


async def test_a_wide_spread_is_doubted(executor: Executor, metrics: Metrics) -> None:
    calibration = Calibration({"mean": SCORES}, SPREAD)
    answers = []
    for offset in (3.0, 9.0):  # the spread is half of it: 1.5, 4.5
        judge = ensemble(executor, metrics, offsets={"a": 0.0, "b": offset}, calibration=calibration)
        async with served(fake_app(judge, metrics=metrics)) as http:
            answers.append((await http.post("/score", json={**ASK, "responses": ["1"]})).json())
    assert [answer["out_of_distribution"] for answer in answers] == [[False], [True]]


async def test_of_weighed_models_one_may_doubt(executor: Executor, metrics: Metrics) -> None:
    known = fake_model(
        FakeScorer(), executor, metrics, name="known", calibration=Calibration({"mean": SCORES})
    )
    unknown = fake_model(FakeScorer(), executor, metrics, name="unknown")
    async with served(fake_app(known, unknown, metrics=metrics)) as http:
        asked = {**ASK, "objectives": {"known": 1.0, "unknown": 1.0}}
        answer = (await http.post("/score", json=asked)).json()
        silent = (await http.post("/score", json={**ASK, "objectives": {"unknown": 1.0}})).json()
    assert answer["out_of_distribution"] == [False, True]
    assert "out_of_distribution" not in silent


async def test_only_the_usual_method_counts_as_drift(executor: Executor, metrics: Metrics) -> None:
    calibration = Calibration({"mean": SCORES, "worst": SCORES})
    judge = ensemble(executor, metrics, offsets={"a": 0.0, "b": 3.0}, calibration=calibration)
    async with served(fake_app(judge, metrics=metrics)) as http:
        await http.post("/score", json={**ASK, "ensemble": "worst"})
        assert sample(metrics, "score_mean_shift", model="panel") == 0
        await http.post("/score", json=ASK)
    assert sample(metrics, "score_mean_shift", model="panel") == 7.5  # the mean of 4.5 and 10.5


async def test_other_forms_take_an_ensembles_reward_for_its_logit(panel: Judge, metrics: Metrics) -> None:
    async with served(fake_app(panel, metrics=metrics)) as http:
        pooled = (await http.post("/pooling", json={"input": [[1, 2, 3], [NOT_A_NUMBER]]})).json()
        classified = (await http.post("/classify", json={"input": "1 2 3"})).json()
        rewarded = (await http.post("/get_reward", json={"query": ["1 2 3"]})).json()
    assert [row["data"] for row in pooled["data"]] == [[4.5], [None]]
    assert pooled["usage"]["total_tokens"] == 8
    assert classified["data"] == [{"index": 0, "label": "panel", "probs": [4.5], "num_classes": 1}]
    assert rewarded["rewards"] == [4.5]


async def test_what_one_member_cannot_read_is_a_400(panel: Judge, metrics: Metrics) -> None:
    async with served(fake_app(panel, metrics=metrics)) as http:
        refused = await http.post("/score", json={**ASK, "responses": ["1 " * 60]})
    assert_envelope(refused, 400, "context_length_exceeded")


async def test_models_say_who_their_members_are(panel: Judge, executor: Executor, metrics: Metrics) -> None:
    single = alone(fake_model(FakeScorer(), executor, metrics), metrics)
    async with served(fake_app(panel, single, metrics=metrics)) as http:
        listed = (await http.get("/v1/models")).json()["data"]
    assert [(card["id"], card["members"], card["version"]) for card in listed] == [
        ("panel", ["a", "b"], "v-a+v-b"),
        ("fake", ["fake"], "v1"),
    ]
