"""Best-of-N as a stream: heartbeats, winners by rank, failures before and after the first byte."""

import asyncio
import re
from typing import Any

from tests.gateway.fake_servers import MODEL, Sample
from tests.gateway.stack import CHAT, check_envelope, events, running

TIMING = r"queue;dur=[\d.]+, generate;dur=[\d.]+, reward;dur=[\d.]+"


async def test_the_winner_is_streamed() -> None:
    async with running() as stack:
        answer = await stack.chat(best_of=3, stream=True, stream_options={"include_usage": True})
        assert answer.headers["x-best-of"] == "3"
        *chunks, usage, done = events(answer.text)
        assert done == "[DONE]"
        assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 9)
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "aaa"
        assert [c for c in chunks if "alignment" in c] == chunks[-1:]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-1]["alignment"]["rewards"] == [3.0]
        assert re.fullmatch(TIMING, chunks[-1]["alignment"]["server_timing"])
        whole = await stack.chat(best_of=3)
        assert re.fullmatch(TIMING, whole.headers["server-timing"])
        assert "server_timing" not in whole.json()["alignment"]
        assert len({c["id"] for c in [*chunks, usage]}) == 1


async def test_several_winners_are_streamed_by_rank_and_usage_only_if_asked() -> None:
    async with running() as stack:
        *chunks, done = events((await stack.complete(best_of=3, n=2, stream=True)).text)
        assert done == "[DONE]"
        texts: dict[int, str] = {}
        for chunk in chunks:
            (choice,) = chunk["choices"]
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
        assert texts == {0: "aaa", 1: "aa"}
        assert ["alignment" in chunk for chunk in chunks].count(True) == 1
        assert "alignment" in chunks[-1]


async def test_heartbeats_fill_the_wait() -> None:
    gate = asyncio.Event()
    async with running(heartbeat_s=0.05) as stack:
        stack.vllm.samples = [Sample("a"), Sample("aa", gate=gate)]
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "best_of": 2, "stream": True}
        seen: list[Any] = []
        async with stack.http.stream("POST", CHAT, json=body) as answer:
            async for line in answer.aiter_lines():
                if line:
                    seen += events(line)
                if len(seen) == 3:
                    gate.set()
        beats = [chunk["choices"][0]["delta"] for chunk in seen[:3]]
        assert beats == [{"role": "assistant", "content": ""}, {}, {}]
        assert seen[-1] == "[DONE]"
        roles = [c for c in seen[:-1] if c["choices"][0]["delta"].get("role")]
        assert len(roles) == 1
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in seen[:-1]) == "aa"


async def test_a_failure_before_the_first_heartbeat_keeps_its_status() -> None:
    async with running() as stack:
        stack.rewards.refusal = (500, "")
        check_envelope(await stack.chat(best_of=2, stream=True), 503, "reward_model_unavailable")


async def test_a_failure_after_the_first_heartbeat_is_an_error_event_without_done() -> None:
    async with running(heartbeat_s=0.02) as stack:
        stack.rewards.refusal = (500, "")
        stack.rewards.hold = asyncio.Event()
        body = {"model": MODEL, "prompt": "Hi", "best_of": 2, "stream": True}
        async with stack.http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.aiter_lines()
            assert events(await anext(lines))[0]["choices"][0]["text"] == ""
            stack.rewards.hold.set()
            rest = [line async for line in lines if line]
        assert answer.status_code == 200
        assert events(rest[-1])[0]["error"]["code"] == "reward_model_unavailable"
