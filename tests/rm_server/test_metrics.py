"""Every metric that is declared moves, and none has a label that clients can make up."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from prometheus_client import CollectorRegistry

from rm_server.calibration import Calibration, Distribution
from rm_server.metrics import Metrics
from rm_server.packing import TextIds
from rm_server.reward_model import RewardModel
from rm_server.shelf import Shelf
from tests.rm_server.fakes import (
    NOT_A_NUMBER,
    FakeScorer,
    alone,
    app_over,
    fake_app,
    fake_model,
    leave_amid_body,
    reloader,
    sample,
    until,
)
from tests.rm_server.test_api_server import ASK, served
from tests.rm_server.test_judge import ensemble
from tests.rm_server.tiny import tiny_model


def values(registry: CollectorRegistry) -> dict[str, dict[tuple[str, ...], float]]:
    """Family -> labels -> value, of the samples that tell whether a family moved."""
    families: dict[str, dict[tuple[str, ...], float]] = {}
    for family in registry.collect():
        moving = [s for s in family.samples if not s.name.endswith(("_created", "_bucket", "_sum"))]
        families[family.name] = {tuple(s.labels.values()): s.value for s in moving}
    return families


async def test_every_declared_metric_moves(executor: Executor, metrics: Metrics) -> None:
    start = values(metrics.registry)
    seen: set[str] = set()

    def look() -> None:
        now = values(metrics.registry)
        seen.update(name for name in now if now[name] != start[name])

    conversation = TextIds(range(1, 21))
    conversation.prompt_length = 18
    RewardModel(tiny_model(), metrics, prompt_cache_bytes=10_000).score([conversation])
    scorer = FakeScorer(held=True)
    # The score 1 + 2 + 1 = 4 lies outside.
    known = Calibration({"mean": Distribution(2000, 0.0, 1.0, (0.001, 0.999), (-3.0, 3.0))})
    model = fake_model(scorer, executor, metrics, max_queue_tokens=20, calibration=known)
    shelf = Shelf([alone(model, metrics)], metrics)
    app = app_over(shelf, metrics)
    async with served(app) as http:
        body = {**ASK, "responses": [str(NOT_A_NUMBER), "1 2 3", "1"]}
        first = asyncio.create_task(http.post("/score", json=body))
        await scorer.entered()
        gone = asyncio.create_task(http.post("/pooling", json={"input": [1] * 10}))
        await until(lambda: sample(metrics, "queue_tokens") == 10)
        look()  # the gauges, while there is work
        assert (await http.post("/pooling", json={"input": [1] * 11})).status_code == 429
        scorer.release(2)
        await first
        await gone
        await leave_amid_body(app, "/score")
        await reloader(shelf, lambda source, current: shelf.current("fake"), executor, metrics).reload()
    async with served(
        fake_app(ensemble(executor, metrics, offsets={"a": 0, "b": 3}), metrics=metrics)
    ) as http:
        await http.post("/score", json=ASK)
    look()
    assert start.keys() - seen == set()


async def test_labels_are_bounded(executor: Executor, metrics: Metrics) -> None:
    async with served(fake_app(fake_model(FakeScorer(), executor, metrics), metrics=metrics)) as http:
        for i in range(20):
            await http.get(f"/made-up-{i}")
            await http.post("/score", json={**ASK, "model": f"made-up-{i}"})
        text = (await http.get("/metrics")).text
    assert 'bonsai_rm_requests_total{route="other",status="404"} 20.0' in text
    assert "made-up" not in text
