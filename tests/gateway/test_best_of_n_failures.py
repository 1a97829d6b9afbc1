"""Best-of-N when the clock, the policy or the reward model fails, over real sockets."""

import asyncio
from typing import Any

import pytest

from gateway.config import Limits, RewardConfig
from tests.gateway.fake_servers import Sample
from tests.gateway.stack import check_envelope, running


async def test_a_deadline_answers_with_those_that_finished() -> None:
    async with running() as stack:
        stack.vllm.samples = [Sample("a"), Sample("aa"), Sample("aaa", gate=asyncio.Event())]
        answer = await stack.chat(best_of=3, alignment={"deadline_ms": 600})
        record = answer.json()["alignment"]
        assert (record["finished"], record["scored"], record["degraded"]) == (2, 2, "deadline")
        assert answer.json()["choices"][0]["message"]["content"] == "aa"
        await stack.vllm.wait_idle()
        assert stack.vllm.aborted == 1


async def test_a_deadline_with_nothing_is_a_504_that_is_not_retried() -> None:
    async with running() as stack:
        stack.vllm.hold.clear()
        answer = await stack.chat(best_of=3, alignment={"deadline_ms": 50})
        check_envelope(answer, 504, "deadline_exceeded")
        assert answer.headers["x-should-retry"] == "false"


async def test_a_failing_reward_model_is_a_503_or_the_first_by_wish() -> None:
    async with running() as stack:
        stack.rewards.refusal = (500, "secret")
        answer = await stack.chat(best_of=2)
        check_envelope(answer, 503, "reward_model_unavailable")
        assert (answer.headers["x-should-retry"], answer.headers["retry-after"]) == ("false", "1")
        answer = await stack.chat(best_of=2, alignment={"on_reward_failure": "first"})
        assert answer.json()["choices"][0]["message"]["content"] == "a"
        assert answer.headers["x-alignment-degraded"] == "reward_unavailable"
        record = answer.json()["alignment"]
        assert (record["rewards"], record["scored"], record["reward_mean"]) == ([None], 0, None)


async def test_the_configuration_can_wish_for_the_first_too() -> None:
    async with running(on_reward_failure="first") as stack:
        stack.rewards.raw_scores = [1.0]
        assert (await stack.chat(best_of=2)).headers["x-alignment-degraded"] == "reward_unavailable"
        answer = await stack.chat(best_of=2, alignment={"on_reward_failure": "error"})
        check_envelope(answer, 503, "reward_model_unavailable")


async def test_rewards_that_are_not_finite_leave_their_candidates_out() -> None:
    async with running() as stack:
        stack.rewards.rewards = {"aaa": float("nan"), "aaaa": float("inf")}
        record = (await stack.chat(best_of=4)).json()["alignment"]
        assert (record["rewards"], record["finished"], record["scored"]) == ([2.0], 4, 2)
        assert record["degraded"] == "rewards_invalid"
        check_envelope(await stack.chat(best_of=4, n=3), 502, "too_few_candidates")


async def test_what_is_too_long_for_the_reward_model_is_left_out() -> None:
    async with running() as stack:
        stack.rewards.max_length = 2
        record = (await stack.chat(best_of=4)).json()["alignment"]
        assert (record["scored"], record["degraded"]) == (2, "candidates_too_long")


async def test_a_question_that_the_reward_model_refuses_is_a_400() -> None:
    async with running() as stack:
        stack.rewards.refusal = (400, {"error": {"code": "unknown_objective", "message": "secret"}})
        answer = await stack.chat(
            best_of=2, alignment={"objectives": {"odd": 1.0}, "on_reward_failure": "first"}
        )
        check_envelope(answer, 400, "reward_model_refused")
        assert "secret" not in answer.text


async def test_a_policy_that_breaks_leaves_those_that_finished() -> None:
    async with running() as stack:
        stack.vllm.break_after = 7
        record = (await stack.chat(best_of=3)).json()["alignment"]
        assert (record["finished"], record["degraded"]) == (2, "candidates_failed")
        assert record["usage"]["all_completion_tokens"] == 6


async def test_a_pooling_reward_model_on_vllm_judges_too() -> None:
    def pooling(_: Any, rewards: Any) -> RewardConfig:
        return RewardConfig(urls=(rewards.url,), name="rm", kind="pooling", offset=1.0)

    async with running(reward_config=pooling) as stack:
        record = (await stack.chat(best_of=3)).json()["alignment"]
        assert (record["rewards"], record["reward_model"]) == ([2.0], "rm")


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
async def test_a_deadline_covers_the_queue(fields: dict[str, Any]) -> None:
    limits = Limits(
        max_best_of=4, max_candidates_per_request=4, max_concurrent_candidates=4, max_queue_wait_s=30
    )
    async with running(limits=limits) as stack:
        stack.vllm.hold.clear()
        first = asyncio.create_task(stack.chat(best_of=4))
        await stack.vllm.arrived.wait()
        answer = await stack.chat(best_of=2, alignment={"deadline_ms": 50}, **fields)
        check_envelope(answer, 504, "deadline_exceeded")
        stack.vllm.hold.set()
        assert (await first).status_code == 200
        assert stack.value("queued_requests") == 0


async def test_a_deadline_covers_turning_token_ids_into_text() -> None:
    async with running() as stack:
        stack.vllm.detokenize_hold.clear()
        answer = await stack.complete(prompt=[72], best_of=2, alignment={"deadline_ms": 50})
        check_envelope(answer, 504, "deadline_exceeded")


@pytest.mark.parametrize("answer", [{}, [], "text", 3])
async def test_token_ids_that_do_not_become_text_cannot_be_judged(answer: Any) -> None:
    async with running() as stack:
        stack.vllm.detokenized = answer
        check_envelope(await stack.complete(prompt=[1, 2], best_of=2), 502, "upstream_error")
