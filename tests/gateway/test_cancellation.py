"""The client goes away: everything behind the gateway stops, in every phase, and nothing is left held."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.config import Limits
from tests.gateway.fake_servers import MODEL, Sample
from tests.gateway.stack import Stack, running

Phase = Callable[[Stack], Awaitable[None]]


async def until_policy_is_asked(stack: Stack) -> None:
    """The policy has the request and has sent nothing."""
    await stack.vllm.arrived.wait()


async def until_reward_is_asked(stack: Stack) -> None:
    """A candidate is being judged while another still generates."""
    await stack.rewards.arrived.wait()


async def check_at_rest(stack: Stack) -> None:
    """Nothing is open upstream, nothing is held here, and the gateway still works."""
    await asyncio.wait_for(stack.vllm.wait_idle(), 5)
    await asyncio.wait_for(stack.rewards.wait_idle(), 5)
    stack.vllm.samples = None
    stack.vllm.hold.set()
    stack.rewards.hold.set()
    assert (await stack.chat(best_of=4)).status_code == 200
    assert (await stack.chat()).status_code == 200
    assert stack.value("candidate_slots_in_use") == 0
    assert stack.value("queued_requests") == 0
    assert stack.value("in_flight_requests") == 0


def endless(stack: Stack) -> None:
    """One candidate ends, the others never do."""
    stack.vllm.samples = [Sample("a")] + [Sample("b", gate=asyncio.Event()) for _ in range(3)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("best_of", "phase"), [(1, until_policy_is_asked), (4, until_policy_is_asked), (4, until_reward_is_asked)]
)
async def test_leaving_before_the_first_byte(stream: bool, best_of: int, phase: Phase) -> None:
    async with running() as stack:
        if phase is until_policy_is_asked:
            stack.vllm.hold.clear()
        else:
            endless(stack)
            stack.rewards.hold.clear()
        request = asyncio.create_task(stack.chat(best_of=best_of, stream=stream))
        await phase(stack)
        request.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await request
        await asyncio.wait_for(stack.vllm.wait_idle(), 5)
        assert stack.vllm.aborted == 1
        assert stack.rewards.aborted == (phase is until_reward_is_asked)
        await check_at_rest(stack)
        assert stack.value("requests_total", route="/v1/chat/completions", model=MODEL, code="499") == 1


@pytest.mark.parametrize("best_of", [1, 4])
async def test_leaving_in_the_middle_of_a_stream(best_of: int) -> None:
    async with running(heartbeat_s=0.02) as stack:
        endless(stack)
        if best_of == 1:
            stack.vllm.samples = [Sample("ab", gate=asyncio.Event())]
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
        async with stack.http.stream(
            "POST", "/v1/chat/completions", json={**body, "best_of": best_of}
        ) as answer:
            await anext(answer.aiter_lines())
        await asyncio.wait_for(stack.vllm.wait_idle(), 5)
        assert stack.vllm.aborted == 1
        await check_at_rest(stack)
        assert stack.value("requests_total", route="/v1/chat/completions", model=MODEL, code="499") == 1


async def test_leaving_the_queue() -> None:
    limits = Limits(
        max_best_of=4, max_candidates_per_request=4, max_concurrent_candidates=4, max_queue_wait_s=30
    )
    async with running(limits=limits) as stack:
        stack.vllm.hold.clear()
        first = asyncio.create_task(stack.chat(best_of=4))
        await stack.vllm.arrived.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await stack.chat(best_of=2)
        stack.vllm.hold.set()
        assert (await first).status_code == 200
        await check_at_rest(stack)
        assert len([r for r in stack.vllm.requests if r.body.get("n") == 2]) == 0


async def test_a_storm_of_goodbyes_leaves_the_gateway_whole() -> None:
    async with running() as stack:
        stack.vllm.samples = [Sample("a"), Sample("bb"), Sample("ccc", gate=asyncio.Event())]
        for round_ in range(6):
            requests = [asyncio.create_task(stack.chat(best_of=3, stream=bool(i % 2))) for i in range(20)]
            await asyncio.wait(requests, timeout=0.01 * round_)
            for request in requests:
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)
        await check_at_rest(stack)
