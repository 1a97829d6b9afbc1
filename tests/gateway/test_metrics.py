"""Every declared metric moves, and labels stay bounded."""

import asyncio
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from gateway.config import Limits
from gateway.metrics import Metrics
from tests.gateway.fake_servers import MODEL, Sample
from tests.gateway.stack import Stack, running

MOVED_ELSEWHERE = {
    "event_loop_lag_seconds": "test_server.py",
    "replica_ejected": "test_replica_metrics.py",
    "retries": "test_replica_metrics.py",
    "log_lines_dropped": "test_middleware.py",
    "key_file_reloads": "test_keys_watch.py",
    "reloads": "test_reload.py",
}
"""What no request moves, and the tests that do."""


def moved(text: str) -> set[str]:
    """Families with a sample that is not 0."""
    families = text_string_to_metric_families(text)
    return {f.name for f in families if any(s.value for s in f.samples if not s.name.endswith("_created"))}


async def scenario(stack: Stack) -> None:
    """A day in the life of a gateway."""
    await stack.chat()
    await stack.chat(stream=True)
    stack.rewards.extra = {"out_of_distribution": [False] * 4, "spread": [0.25] * 4}
    await stack.chat(best_of=4)
    await stack.complete(best_of=4, echo=True)
    await stack.chat(best_of=4, temperature=0)
    stack.rewards.refusal = (500, "")
    await stack.chat(best_of=4)


async def test_every_declared_metric_is_moved_by_some_request() -> None:
    limits = Limits(max_best_of=4, max_candidates_per_request=4, max_concurrent_candidates=4, max_queue=1)
    async with running(limits=limits) as stack:
        await scenario(stack)
        stack.vllm.hold.clear()
        stack.vllm.arrived.clear()
        holding = asyncio.create_task(stack.chat(best_of=4))
        await stack.vllm.arrived.wait()
        waiting = asyncio.create_task(stack.chat(best_of=4))
        refused = await asyncio.wait_for(_refused(stack), 5)
        assert refused
        text = (await stack.http.get("/metrics")).text
        stack.vllm.hold.set()
        await asyncio.gather(holding, waiting)
    declared = {family.name for family in Metrics().registry.collect()}
    assert declared - moved(text) == {f"bonsai_gateway_{name}" for name in MOVED_ELSEWHERE}
    for name, test in MOVED_ELSEWHERE.items():
        assert name in (Path(__file__).parent / test).read_text(encoding="utf-8")


async def _refused(stack: Stack) -> bool:
    """Ask until the queue is full: the second request may not have reached it yet."""
    while (await stack.chat(best_of=4, alignment={"deadline_ms": 1})).status_code != 503:
        pass
    return True


async def test_what_became_of_requests_and_candidates() -> None:
    async with running() as stack:
        stack.rewards.rewards = {"aaa": None}
        stack.vllm.samples = [Sample("a"), Sample("aa"), Sample("aaa"), Sample("x", "abort")]
        await stack.chat(best_of=4)
        assert stack.value("candidates_total", status="scored") == 2
        assert stack.value("candidates_total", status="unscored") == 1
        assert stack.value("candidates_total", status="unfinished") == 1
        assert stack.value("degraded_total", reason="candidates_failed") == 1
        assert stack.value("tokens_total", kind="completion") == 12
        assert stack.value("tokens_total", kind="sampled") == 12
        assert stack.value("tokens_total", kind="selected") == 3
        assert stack.value("reward_gain_sum") == 0.5
        await stack.chat(n=True)
        for _ in range(3):
            await stack.chat(model="made-up")
        requests = {"route": "/v1/chat/completions"}
        assert stack.value("requests_total", **requests, model=MODEL, code="200") == 1
        assert stack.value("requests_total", **requests, model=MODEL, code="400") == 1
        assert stack.value("requests_total", **requests, model="other", code="404") == 3
        assert stack.value("errors_total", code="model_not_found") == 3


async def test_labels_do_not_grow_with_what_clients_send() -> None:
    async with running() as stack:
        for number in range(5):
            await stack.chat(model=f"made-up-{number}")
            await stack.http.get(f"/made-up/{number}")
            await stack.chat(headers={"x-request-id": f"id-{number}"}, model=f"{MODEL}:best-of-{number + 2}")
        text = (await stack.http.get("/metrics")).text
        assert "made-up" not in text
        assert "id-" not in text
        assert ":best-of" not in text
