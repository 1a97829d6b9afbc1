"""A client that goes away: the engine stops generating for it."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.e2e.asking import MESSAGES, metric
from tests.e2e.commands import Served

LENGTH = 480  # tokens, near the end of the context
LIMIT = 60  # seconds for what takes milliseconds on an idle machine


async def until(url: str, name: str, wanted: Callable[[float], bool]) -> None:
    """Looks at a server's metric until it is as wanted."""
    async with asyncio.timeout(LIMIT):
        while not wanted(await asyncio.to_thread(metric, url, name)):
            pass


@pytest.mark.parametrize(
    "fields", [{"best_of": 64}, {"best_of": 64, "stream": True}, {"n": 64, "stream": True}]
)
async def test_what_nobody_waits_for_is_aborted(fields: dict[str, Any], served: Served) -> None:
    """Many long answers, so that they are under way when the client leaves; judged, and passing through."""
    finished = metric(served.policy_url, "vllm:request_success_total")
    generated = metric(served.policy_url, "vllm:generation_tokens_total")
    body = {
        "model": served.model,
        "messages": MESSAGES,
        "max_tokens": LENGTH,
        "min_tokens": LENGTH,
        "ignore_eos": True,
        **fields,
    }
    async with httpx.AsyncClient(timeout=LIMIT) as client:

        async def ask() -> None:
            async with client.stream("POST", f"{served.url}/v1/chat/completions", json=body) as answer:
                await answer.aread()

        asking = asyncio.create_task(ask())
        await until(served.policy_url, "vllm:num_requests_running", lambda running: running > 0)
        asking.cancel()
        await asyncio.wait([asking])
    assert asking.cancelled()
    await until(served.policy_url, "vllm:num_requests_running", lambda running: running == 0)
    await until(served.policy_url, "vllm:num_requests_waiting", lambda waiting: waiting == 0)
    all_tokens = LENGTH * 64
    assert metric(served.policy_url, "vllm:generation_tokens_total") < generated + all_tokens
    assert metric(served.policy_url, "vllm:request_success_total") == finished
    # One is in flight: the look at the metrics itself.
    await until(served.url, "bonsai_gateway_in_flight_requests", lambda in_flight: in_flight == 1)
    await until(served.url, "bonsai_gateway_candidate_slots_in_use", lambda used: used == 0)
