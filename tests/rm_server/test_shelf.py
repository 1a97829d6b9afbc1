"""A reload under requests: each keeps the version that it began with, and what nobody holds is let go."""

from __future__ import annotations

import asyncio
import gc
import weakref
from concurrent.futures import Executor

import pytest

from rm_server.calibration import Calibration, Distribution
from rm_server.config import ModelSource
from rm_server.errors import CheckpointError
from rm_server.judge import Judge
from rm_server.metrics import Metrics
from rm_server.shelf import Shelf
from tests.rm_server.fakes import FakeScorer, alone, app_over, fake_model, reloader, sample, until
from tests.rm_server.test_api_server import ASK, served


def version(name: str, executor: Executor, metrics: Metrics, scorer: FakeScorer | None = None) -> Judge:
    """A judge whose rewards tell its version: v7 gives 7 more."""
    offset = -float(name.removeprefix("v"))
    model = fake_model(scorer or FakeScorer(), executor, metrics, version=name, reward_offset=offset)
    return alone(model, metrics)


async def test_a_request_is_scored_by_the_version_that_it_began_with(
    executor: Executor, metrics: Metrics
) -> None:
    held = FakeScorer(held=True)
    shelf = Shelf([version("v1", executor, metrics, held)], metrics)
    new = version("v2", executor, metrics)
    async with served(app_over(shelf, metrics)) as http:
        first = asyncio.create_task(http.post("/score", json=ASK))
        await held.entered()
        shelf.put(new)
        held.release()
        old, after = (await first).json(), (await http.post("/score", json=ASK)).json()
    assert (old["version"], old["scores"]) == ("v1", [7.0, 13.0])
    assert (after["version"], after["scores"]) == ("v2", [8.0, 14.0])


async def test_the_old_version_is_free_after_its_last_request(executor: Executor, metrics: Metrics) -> None:
    held = FakeScorer(held=True)
    shelf = Shelf([version("v1", executor, metrics, held)], metrics)
    weights = weakref.ref(shelf.current(None).first)
    async with served(app_over(shelf, metrics)) as http:
        request = asyncio.create_task(http.post("/score", json=ASK))
        await held.entered()
        shelf.put(version("v2", executor, metrics))
        gc.collect()
        assert weights() is not None
        held.release()
        await request
        del request
        await asyncio.sleep(0)  # its task ends
        await http.post("/score", json=ASK)  # the scorer's thread holds its last work until it has other
        gc.collect()
        assert weights() is None
        assert (await http.get("/health/ready")).status_code == 200


async def test_metrics_name_the_version_that_serves(executor: Executor, metrics: Metrics) -> None:
    shelf = Shelf([version("v1", executor, metrics)], metrics)
    async with served(app_over(shelf, metrics)):
        assert sample(metrics, "model_info", model="fake", version="v1") == 1
        shelf.put(version("v2", executor, metrics))
        assert sample(metrics, "model_info", model="fake", version="v2") == 1
        assert sample(metrics, "model_info", model="fake", version="v1") == 0


async def test_a_version_that_nothing_is_known_of_has_no_drift(executor: Executor, metrics: Metrics) -> None:
    known = Calibration({"mean": Distribution(2000, 0.0, 1.0, (0.001, 0.999), (-3.0, 3.0))})
    shelf = Shelf([alone(fake_model(FakeScorer(), executor, metrics, calibration=known), metrics)], metrics)
    async with served(app_over(shelf, metrics)) as http:
        await http.post("/score", json=ASK)
        assert sample(metrics, "score_mean_shift", model="fake") == 9  # the mean of 6 and 12
        shelf.put(version("v2", executor, metrics))
        await http.post("/score", json=ASK)
        assert "score_mean_shift{" not in (await http.get("/metrics")).text


async def test_a_reload_swaps_keeps_or_refuses(
    executor: Executor, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = Shelf([version("v1", executor, metrics)], metrics)
    found: list[Judge | Exception] = [
        version("v2", executor, metrics),
        CheckpointError("bad: a flipped bit"),
        RuntimeError("whatever"),
    ]

    def make(source: ModelSource, current: Judge) -> Judge:
        next_one = found.pop(0) if found else current
        if isinstance(next_one, Exception):
            raise next_one
        return next_one

    reload = reloader(shelf, make, executor, metrics).reload
    seen = []
    async with served(app_over(shelf, metrics)) as http:
        for _ in range(4):
            await reload()
            seen.append((await http.post("/score", json=ASK)).json()["version"])
    assert seen == ["v2"] * 4
    counts = {
        outcome: sample(metrics, "reloads_total", model="fake", outcome=outcome)
        for outcome in ("swapped", "refused", "unchanged")
    }
    assert counts == {"swapped": 1, "refused": 2, "unchanged": 1}
    assert "fake: still version v2: bad: a flipped bit" in caplog.text


async def test_members_that_a_new_judge_took_over_go_on(executor: Executor, metrics: Metrics) -> None:
    kept, gone, new = (fake_model(FakeScorer(), executor, metrics, name=n, version=n) for n in "abc")
    shelf = Shelf([Judge("panel", {"a": kept, "b": gone}, metrics)], metrics)
    async with served(app_over(shelf, metrics)) as http:
        shelf.put(Judge("panel", {"a": kept, "b": new}, metrics))
        answer = (await http.post("/score", json=ASK)).json()
        assert (answer["version"], answer["scores"]) == ("a+c", [6.0, 12.0])
        assert (await http.get("/health/ready")).status_code == 200


async def test_a_server_that_leaves_is_unready_and_answers(executor: Executor, metrics: Metrics) -> None:
    shelf = Shelf([version("v1", executor, metrics)], metrics)
    async with served(app_over(shelf, metrics)) as http:
        shelf.leaving = True
        ready, live = await http.get("/health/ready"), await http.get("/health/live")
        answer = await http.post("/score", json=ASK)
    assert (ready.status_code, live.status_code, answer.status_code) == (503, 200, 200)
    assert answer.headers["connection"] == "close"


async def test_a_model_that_cannot_score_is_not_ready(executor: Executor, metrics: Metrics) -> None:
    judge = version("v1", executor, metrics)
    shelf = Shelf([judge], metrics)
    async with served(app_over(shelf, metrics)) as http:
        assert (await http.get("/health/ready")).status_code == 200
        judge.first.engine = Unready()
        assert (await http.get("/health/ready")).status_code == 503


class Unready:
    """An engine whose machine is away."""

    async def score(self, rows: object) -> object:
        raise NotImplementedError

    async def run(self) -> None:
        await until(lambda: False)

    async def ready(self) -> bool:
        return False
