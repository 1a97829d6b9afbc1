"""B: candidates of every kind, deadlines that find k of N, the count of tokens, slots given as a whole."""

import asyncio
import json
import random
from typing import Any

import pytest

from gateway.config import Limits
from tests.faults.fakes import streaming
from tests.faults.world import World, texts
from tests.gateway.fake_servers import Sample, closing_chunks, event
from tests.gateway.stack import check_envelope


def call(arguments: str) -> dict[str, Any]:
    """A delta with one tool call."""
    function = {"name": "look", "arguments": arguments}
    return {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}]}


ODD_CANDIDATES = {
    "empty": Sample(""),
    "blank": Sample(" \n\t\u3000"),
    "NUL and bidi": Sample("\x00\u202e\ufeff"),
    "control tokens": Sample("<|im_end|><|im_start|>system"),
    "emoji": Sample("👩‍👩‍👧‍👦" * 50),
    "cut": Sample("and then", finish_reason="length"),
    "filtered": Sample("", finish_reason="content_filter"),
    "a refusal": Sample("", delta={"refusal": "I will not."}),
    "reasoning alone": Sample("", delta={"reasoning_content": "hm"}),
    "a tool call": Sample("", delta=call('{"b": 1, "a": [1]}'), finish_reason="tool_calls"),
    "half a tool call": Sample("", delta=call('{"b": '), finish_reason="length"),
    "a tool call that is none": Sample("", delta=call("[" * 100_000), finish_reason="tool_calls"),
    "a tool call with NaN": Sample("", delta=call('{"a": NaN}'), finish_reason="tool_calls"),
    "a tool call without function": Sample("", delta={"tool_calls": [{"index": 0}]}),
    "tool calls by the thousand": Sample("", delta={"tool_calls": [{"index": i} for i in range(1000)]}),
    "a negative tool call": Sample("", delta={"tool_calls": [{"index": -(2**63)}]}),
    "a megabyte": Sample("x" * 2**20),
}


async def test_odd_candidates_win_and_lose_like_others(world: World) -> None:
    for name, odd in ODD_CANDIDATES.items():
        for winner, rewards in (("odd", {"plain": -1.0}), ("plain", {"plain": 1e9})):
            world.say(samples=[odd, Sample("plain")])
            world.judge(rewards=rewards)
            answer = await world.chat(best_of=2)
            assert answer.status_code == 200, name
            record, choice = answer.json()["alignment"], answer.json()["choices"][0]
            assert (record["scored"], record["degraded"]) == (2, None), name
            assert (choice["message"]["content"] == "plain") == (winner == "plain"), name
            assert choice["finish_reason"] == (odd.finish_reason if winner == "odd" else "stop"), name
            assert (await world.chat(best_of=2, stream=True)).text.endswith("data: [DONE]\n\n"), name


async def test_all_empty_is_an_answer(world: World) -> None:
    world.say(samples=[Sample("")] * 4)
    for answer in (await world.chat(best_of=4), await world.chat(best_of=4, stream=True)):
        assert texts(answer) == [""]


async def test_a_candidate_without_a_proper_end_is_none(world: World) -> None:
    for finish_reason in ("abort", "error", "", "canary", None):
        world.say(samples=[Sample("the longest by far", finish_reason=finish_reason), Sample("x")])
        answer = await world.chat(best_of=2)
        assert (texts(answer), answer.json()["alignment"]["degraded"]) == (["x"], "candidates_failed")
        check_envelope(await world.chat(best_of=2, n=2), 502, "too_few_candidates")


async def test_all_too_long_for_the_reward_model_is_an_error(world: World) -> None:
    world.judge(max_length=0)
    check_envelope(await world.chat(best_of=3), 502, "too_few_candidates")
    assert texts(await world.chat(best_of=3, alignment={"on_reward_failure": "first"})) == ["a"]


async def test_seeds_go_up_once_and_none_is_sent_for_minus_one(world: World) -> None:
    before = [len(vllm.requests) for vllm in world.vllms]
    for seed in (7, 0, -1, -(2**63), 2**63 - 16):
        assert (await world.chat(best_of=4, seed=seed)).status_code == 200
    asked = [r for vllm, old in zip(world.vllms, before, strict=True) for r in vllm.requests[old:]]
    sent = [request.body.get("seed") for request in asked]
    assert sorted(sent, key=str) == sorted([7, 0, None, -(2**63), 2**63 - 16], key=str)


@pytest.mark.parametrize("done", [0, 1, 3])
async def test_a_deadline_finds_those_that_are_done(world: World, done: int) -> None:
    world.say(samples=[Sample("x" * (i + 1), gate=asyncio.Event() if i >= done else None) for i in range(4)])
    whole, streamed = await asyncio.gather(
        *(world.chat(best_of=4, stream=stream, alignment={"deadline_ms": 250}) for stream in (False, True))
    )
    if done == 0:
        for answer in (whole, streamed):
            check_envelope(answer, 504, "deadline_exceeded")
    else:
        record = whole.json()["alignment"]
        assert (record["finished"], record["scored"], record["degraded"]) == (done, done, "deadline")
        assert texts(whole) == texts(streamed) == ["x" * done]
    await asyncio.gather(*(vllm.wait_idle() for vllm in world.vllms))
    assert sum(vllm.aborted for vllm in world.vllms) == 2


async def test_every_token_of_every_candidate_is_counted(world: World) -> None:
    chance = random.Random(1)
    for _ in range(40):
        count = chance.randint(2, 12)
        samples = [Sample(chance.choice("abcdefgh") * 3, tokens=chance.randint(0, 500)) for _ in range(count)]
        ended = samples[: chance.choice([count, count, chance.randint(1, count)])]
        chunks = [chunk for i, sample in enumerate(ended) for chunk in closing_chunks("chat", i, sample)]
        world.policies_do(streaming([*map(event, chunks), b"data: [DONE]\n\n"]))
        before = world.value("tokens_total", kind="completion")
        answer = (await world.chat(best_of=count)).json()
        total = sum(sample.tokens for sample in ended)
        assert answer["usage"]["completion_tokens"] == total
        assert answer["usage"]["total_tokens"] == total + 5
        usage = answer["alignment"]["usage"]
        assert usage["all_completion_tokens"] == total
        assert usage["reward_tokens"] == 10 * len({sample.text for sample in ended})
        said = answer["choices"][0]["message"]["content"]
        assert usage["selected_completion_tokens"] in {s.tokens for s in ended if s.text == said}
        assert world.value("tokens_total", kind="completion") - before == total


TIGHT = Limits(
    max_best_of=16,
    max_candidates_per_request=16,
    max_concurrent_candidates=16,
    max_queue=200,
    max_queue_wait_s=15,
)


@pytest.mark.parametrize("world", [{"limits": TIGHT}], indirect=True)
async def test_mixed_sizes_are_admitted_whole_and_all_are_served(world: World) -> None:
    chance = random.Random(1)
    world.say(takes=lambda: 0.002)
    sizes = [chance.choice([1, 1, 2, 4, 8, 13, 16]) for _ in range(100)]
    answers = await asyncio.gather(*(world.chat(best_of=size) for size in sizes))
    assert [texts(answer) for answer in answers] == [["a" * size] for size in sizes]
    assert 13 <= world.load.most <= 16


@pytest.mark.parametrize("world", [{"limits": TIGHT}], indirect=True)
async def test_the_largest_is_not_starved_by_a_flow_of_the_smallest(world: World) -> None:
    served, enough = 0, asyncio.Event()

    async def flow() -> None:
        nonlocal served
        while not enough.is_set():
            assert (await world.chat()).status_code == 200
            served += 1

    world.say(takes=lambda: 0.005)
    flows = [asyncio.create_task(flow()) for _ in range(20)]
    for _ in range(5):
        assert texts(await asyncio.wait_for(world.chat(best_of=16), 10)) == ["a" * 16]
    enough.set()
    await asyncio.gather(*flows)
    assert served > 20
    assert world.load.most <= 16


async def test_text_of_any_kind_comes_back_as_it_was(world: World) -> None:
    text = "".join(map(chr, [*range(0x20), 0x7F, 0x85, 0x2028, 0x2029, 0xFEFF, 0xFFFF, 0x1F600, 0x10FFFF]))
    world.say(samples=[Sample(text)])
    asked = [{"role": "user", "content": text}]
    for way in ({}, {"best_of": 2}, {"best_of": 2, "stream": True}, {"stream": True}):
        assert texts(await world.chat(messages=asked, **way)) == [text], json.dumps(way)
    sent = [request.body["messages"] for vllm in world.vllms for request in vllm.requests]
    assert sent.count(asked) == 4
