"""What other clients really send, recorded from them or read in their source, and the bytes that they read.

Recorded from openai-node 6.49.0 and langchain-openai 1.7.3 before this gateway; read in lm-eval 0.4.13
(`models/openai_completions.py`, `utils.py`) and guidellm 0.8.1 (`backends/openai/request_handlers.py`).
"""

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from tests.gateway.fake_servers import MODEL
from tests.gateway.stack import CHAT, Stack, events, running

COMPLETIONS = "/v1/completions"
HI = [{"content": "Hi", "role": "user"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"properties": {"city": {"type": "string"}}, "required": ["city"], "type": "object"},
    },
}
NODE_TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {}}, "strict": True},
}
X_SCHEMA = {
    "properties": {"x": {"title": "X", "type": "integer"}},
    "required": ["x"],
    "title": "A",
    "type": "object",
    "additionalProperties": False,
}
STRUCTURED = {"type": "json_schema", "json_schema": {"schema": X_SCHEMA, "name": "A", "strict": True}}
LANGCHAIN_COMPLETION = {
    "frequency_penalty": 0,
    "logprobs": None,
    "max_tokens": 256,
    "n": 1,
    "presence_penalty": 0,
    "seed": None,
    "temperature": 0.7,
    "top_p": 1,
}

RECORDED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    # name: path, body, the texts that the client reads
    "node": (CHAT, {"model": MODEL, "messages": HI, "best_of": 3, "n": 2}, ["aaa", "aa"]),
    "node tools": (
        CHAT,
        {"model": MODEL, "messages": HI, "tools": [NODE_TOOL]},
        ["a"],
    ),
    "node prompts": (COMPLETIONS, {"model": MODEL, "prompt": ["a", "b"], "best_of": 2}, ["aa", "aaaa"]),
    "langchain": (CHAT, {"model": MODEL, "stream": False, "messages": HI, "best_of": 3}, ["aaa"]),
    "langchain tools": (
        CHAT,
        {
            "model": f"{MODEL}:best-of-2",
            "stream": False,
            "messages": HI,
            "parallel_tool_calls": False,
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
            "tools": [WEATHER],
        },
        ["aa"],
    ),
    "langchain structured": (
        CHAT,
        {"model": f"{MODEL}:best-of-2", "stream": False, "messages": HI, "response_format": STRUCTURED},
        ["aa"],
    ),
    "langchain completions": (
        COMPLETIONS,
        {"model": MODEL, "prompt": ["Hi", "Ho"], **LANGCHAIN_COMPLETION},
        ["a", "aa"],
    ),
    "langchain completions best of": (
        COMPLETIONS,
        {"model": MODEL, "prompt": ["Hi"], "best_of": 2, **LANGCHAIN_COMPLETION},
        ["aa"],
    ),
    "lm-eval chat": (
        CHAT,
        {
            "messages": HI,
            "model": f"{MODEL}:best-of-4",
            "max_tokens": 256,
            "temperature": 0,
            "stop": ["\n\n", "</s>"],
            "seed": 1234,
        },
        ["a"],  # greedy: one candidate is sampled
    ),
    "lm-eval completions": (
        COMPLETIONS,
        {
            "prompt": [[72, 105], [72, 111]],
            "model": MODEL,
            "max_tokens": 256,
            "temperature": 0,
            "stop": ["\n"],
            "seed": 1234,
        },
        ["a", "aa"],
    ),
    "guidellm": (
        CHAT,
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "max_completion_tokens": 16,
            "stop": None,
            "ignore_eos": True,
        },
        ["a"],
    ),
}


async def post(stack: Stack, path: str, body: Mapping[str, Any]) -> httpx.Response:
    """POST a body as it is."""
    return await stack.http.post(path, json=body)


@pytest.mark.parametrize("name", RECORDED)
async def test_what_clients_send_is_answered_with_what_they_read(name: str) -> None:
    path, body, texts = RECORDED[name]
    async with running() as stack:
        answer = (await post(stack, path, body)).raise_for_status()
        assert "x-ignored-fields" not in answer.headers
    choices = answer.json()["choices"]
    assert [choice["index"] for choice in choices] == list(range(len(texts)))
    found = [choice["message"]["content"] if path == CHAT else choice["text"] for choice in choices]
    assert found == texts
    assert all(choice["finish_reason"] == "stop" for choice in choices)
    usage = answer.json()["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_lm_evals_scoring_requests_bypass_best_of_n() -> None:
    """It sums `token_logprobs[ctxlen:-1]` of the prompt: a candidate more would be another prompt's."""
    body = {
        "model": f"{MODEL}:best-of-4",
        "prompt": [[1, 2, 3], [4, 5]],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    logprobs = {"token_logprobs": [None, -0.1, -0.2, -0.3], "top_logprobs": [None, {"b": -0.1}]}
    upstream = {"choices": [{"index": 0, "text": "abc", "logprobs": logprobs}], "usage": {"prompt_tokens": 3}}
    async with running() as stack:
        stack.vllm.raw_body = json.dumps(upstream).encode()
        answer = (await post(stack, COMPLETIONS, body)).raise_for_status()
        assert answer.content == stack.vllm.raw_body
        assert stack.vllm.requests[0].body == {**body, "model": MODEL}
        assert stack.rewards.requests == []


async def test_lm_evals_check_of_the_tokenizer() -> None:
    async with running() as stack:
        answer = await post(stack, "/tokenize", {"prompt": "test", "add_special_tokens": False})
        assert answer.raise_for_status().json()["tokens"] == [116, 101, 115, 116]


async def test_guidellms_questions_before_it_starts() -> None:
    async with running() as stack:
        assert (await stack.http.get("/health")).is_success
        assert (await stack.http.get("/v1/models")).json()["data"][0]["id"] == MODEL


@pytest.mark.parametrize("best_of", [1, 3])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_guidellms_streams_have_text_and_usage(path: str, best_of: int) -> None:
    said = {"messages": HI} if path == CHAT else {"prompt": "Hi"}
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {
        "model": MODEL,
        **said,
        "stream": True,
        "stream_options": options,
        "ignore_eos": True,
        "stop": None,
    }
    async with running() as stack:
        answer = await post(stack, path, {**body, "best_of": best_of, "max_tokens": 16})
        *chunks, done = events(answer.text)
    assert done == "[DONE]"
    pieces = [
        choice.get("text") or choice.get("delta", {}).get("content")
        for c in chunks
        for choice in c["choices"]
    ]
    assert "".join(piece or "" for piece in pieces) == "a" * best_of
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 3 * best_of


async def test_the_bytes_of_a_stream_with_heartbeats() -> None:
    """LangChain resets its timer on parsed chunks alone, openai-node chokes on `event:` lines, neither on
    empty deltas; `choices` is never null; the body ends after `[DONE]`, and node reads up to its end."""
    body = {"model": MODEL, "stream": True, "messages": HI, "best_of": 3}
    async with running(heartbeat_s=0.02) as stack:
        stack.rewards.hold.clear()
        found = []
        async with stack.http.stream("POST", CHAT, json=body) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-cache"
            assert answer.headers["x-accel-buffering"] == "no"
            async for line in answer.aiter_lines():
                found.append(line)
                if len(found) == 8:  # the role and three heartbeats, each with a blank line
                    stack.rewards.hold.set()
    assert found[1::2] == [""] * (len(found) // 2)
    assert all(line.startswith("data: ") for line in found[::2])
    assert found[-2] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in found[:-2:2]]
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:4]] == [
        {"role": "assistant", "content": ""},
        {},
        {},
        {},
    ]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert all("usage" not in chunk for chunk in chunks)  # LangChain asks for it where it wants it
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert [chunk["alignment"]["scored"] for chunk in chunks if "alignment" in chunk] == [3]


async def test_litellm_reads_the_retry_time_as_a_whole_number() -> None:
    async with running() as stack:
        stack.vllm.refusal = (503, {}, {"retry-after": "1.5"})
        answer = await post(stack, CHAT, {"model": MODEL, "messages": HI})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
