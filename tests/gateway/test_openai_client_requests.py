"""The official client, unchanged: what it can ask for, what it reads, and what it raises."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from gateway.config import Limits
from tests.gateway.fake_servers import MODEL, Sample
from tests.gateway.stack import Stack, running

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
CALL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"a": 1}'}}
CHAT_LOGPROBS = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]}
TEXT_LOGPROBS = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5}], "text_offset": [0]}
TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": True},
}
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {"name": "x", "strict": True, "schema": {"type": "object", "properties": {}}},
}


@asynccontextmanager
async def connected(**fields: Any) -> AsyncGenerator[tuple[Stack, AsyncOpenAI], None]:
    """A stack and a client that does not retry."""
    async with (
        running(**fields) as stack,
        AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        yield stack, client


async def test_tools_go_up_and_the_best_call_comes_back() -> None:
    async with connected() as (stack, client):
        stack.vllm.samples = [Sample("a"), Sample("", "tool_calls", delta={"tool_calls": [CALL]})]
        answer = await client.chat.completions.create(
            model=f"{MODEL}:best-of-2",
            messages=MESSAGES,
            tools=[TOOL],
            tool_choice="auto",
            parallel_tool_calls=False,
        )
        assert stack.vllm.requests[0].body["tools"] == [TOOL]
        assert stack.vllm.requests[0].body["parallel_tool_calls"] is False
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls or ()
    assert call.type == "function"
    assert (call.id, call.function.name, call.function.arguments) == ("c1", "weather", '{"a": 1}')


async def test_a_streamed_tool_call_is_put_together_by_the_client() -> None:
    async with connected() as (stack, client):
        stack.vllm.samples = [Sample("a"), Sample("", "tool_calls", delta={"tool_calls": [CALL]})]
        async with client.chat.completions.stream(
            model=f"{MODEL}:best-of-2", messages=MESSAGES, tools=[TOOL]
        ) as stream:
            final = await stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls or ()
    assert (call.function.name, call.function.arguments) == ("weather", '{"a": 1}')
    assert final.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "choice", ["required", "none", {"type": "function", "function": {"name": "weather"}}]
)
async def test_choices_among_tools_go_up(choice: Any) -> None:
    async with connected() as (stack, client):
        await client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[TOOL], tool_choice=choice)
        assert stack.vllm.requests[0].body["tool_choice"] == choice


@pytest.mark.parametrize("response_format", [{"type": "text"}, {"type": "json_object"}, SCHEMA])
async def test_response_formats_go_up_for_every_candidate(response_format: Any) -> None:
    async with connected() as (stack, client):
        await client.chat.completions.create(
            model=f"{MODEL}:best-of-2", messages=MESSAGES, response_format=response_format
        )
        assert stack.vllm.requests[0].body["response_format"] == response_format


@pytest.mark.parametrize("stream", [False, True])
async def test_the_winners_own_log_probabilities(stream: bool) -> None:
    async with connected() as (stack, client):
        stack.vllm.samples = [Sample("a"), Sample("bb", logprobs=CHAT_LOGPROBS)]
        asked: dict[str, Any] = {"model": f"{MODEL}:best-of-2", "messages": MESSAGES, "logprobs": True}
        if stream:
            chunks = await client.chat.completions.create(**asked, top_logprobs=1, stream=True)
            found = [c.choices[0].logprobs async for c in chunks if c.choices[0].logprobs]
        else:
            answer = await client.chat.completions.create(**asked, top_logprobs=1)
            assert answer.choices[0].logprobs is not None
            found = [answer.choices[0].logprobs]
    [logprobs] = found
    assert [token.logprob for token in logprobs.content or ()] == [-0.5]


async def test_a_completions_log_probabilities() -> None:
    async with connected() as (stack, client):
        stack.vllm.samples = [Sample("a"), Sample("bb", logprobs=TEXT_LOGPROBS)]
        answer = await client.completions.create(model=MODEL, prompt="Hi", best_of=2, logprobs=1)
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.token_logprobs == [-0.5]


@pytest.mark.parametrize("best_of", [1, 2])
async def test_usage_is_streamed_when_asked_for_and_only_then(best_of: int) -> None:
    async with connected() as (_, client):
        for options in ({"include_usage": True, "include_obfuscation": False}, openai.omit):
            asked: dict[str, Any] = {"model": f"{MODEL}:best-of-{best_of}", "stream_options": options}
            stream = await client.chat.completions.create(**asked, messages=MESSAGES, stream=True)
            chunks: list[ChatCompletionChunk] = [chunk async for chunk in stream]
            if options is openai.omit:
                assert all(chunk.choices for chunk in chunks)
            else:
                assert chunks[-1].choices == []
                assert chunks[-1].usage is not None
                assert chunks[-1].usage.completion_tokens == 3 * best_of


@pytest.mark.parametrize("prompt", [["Hi", "Ho"], [[1, 2], [3]]])
async def test_lists_of_prompts_are_answered_prompt_by_prompt(prompt: Any) -> None:
    async with connected() as (_, client):
        answer = await client.completions.create(model=MODEL, prompt=prompt, n=2, best_of=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == ["aaa", "aa", "aaaaaa", "aaaaa"]
    assert [record["best_of"] for record in (answer.model_extra or {})["alignment"]] == [3, 3]


async def test_heartbeats_are_harmless() -> None:
    async with connected(heartbeat_s=0.02) as (stack, client):
        stack.rewards.hold.clear()
        stream = await client.chat.completions.create(
            model=f"{MODEL}:best-of-3", messages=MESSAGES, stream=True
        )
        chunks = []
        async for chunk in stream:
            chunks.append(chunk)
            if len(chunks) == 4:
                stack.rewards.hold.set()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "aaa"
    assert [chunk.choices[0].delta.role for chunk in chunks if chunk.choices[0].delta.role] == ["assistant"]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"


async def test_a_failure_after_the_first_heartbeat_raises_and_is_no_end() -> None:
    async with connected(heartbeat_s=0.02) as (stack, client):
        stack.rewards.hold.clear()
        stack.rewards.refusal = (500, "secret")
        stream = await client.chat.completions.create(
            model=f"{MODEL}:best-of-3", messages=MESSAGES, stream=True
        )
        await anext(stream)
        stack.rewards.hold.set()

        async def read_on() -> None:
            async for _ in stream:
                pass

        with pytest.raises(openai.APIError) as caught:
            await read_on()
    assert caught.value.code == "reward_model_unavailable"
    assert "secret" not in str(caught.value)


async def test_headers_are_there_for_who_asks() -> None:
    async with connected() as (_, client):
        raw = await client.chat.completions.with_raw_response.create(
            model=f"{MODEL}:best-of-3", messages=MESSAGES, extra_headers={"x-request-id": "mine-1"}
        )
        completion = raw.parse()
    assert completion.choices[0].message.content == "aaa"
    assert (raw.headers["x-request-id"], raw.headers["x-best-of"], raw.headers["x-best-of-scored"]) == (
        "mine-1",
        "3",
        "3",
    )
    assert raw.headers["server-timing"].startswith("queue;dur=")


def too_busy(stack: Stack) -> None:
    """vLLM's answer when its queue is full."""
    stack.vllm.refusal = (503, {"error": {"message": "secret"}}, {"retry-after": "7"})


def broken(stack: Stack) -> None:
    """vLLM's answer when its engine is dead."""
    stack.vllm.refusal = (500, {"error": {"message": "secret"}}, {})


def too_long(stack: Stack) -> None:
    """vLLM's answer to a prompt that does not fit."""
    message = "This model's maximum context length is 512 tokens. secret"
    stack.vllm.refusal = (400, {"error": {"message": message, "code": 400}}, {})


def never(stack: Stack) -> None:
    """No answer before the deadline."""
    stack.vllm.hold.clear()


@pytest.mark.parametrize(
    ("arrange", "fields", "status", "kind", "code"),
    [
        (None, {"model": "nope"}, 404, openai.NotFoundError, "model_not_found"),
        (None, {"tools": []}, 400, openai.BadRequestError, "invalid_request"),
        (None, {"functions": [{"name": "f"}]}, 400, openai.BadRequestError, "unsupported"),
        (None, {"tool_choice": "auto"}, 400, openai.BadRequestError, "invalid_request"),
        (
            None,
            {"messages": [{"role": "user", "content": "x" * 5000}]},
            413,
            openai.APIStatusError,
            "body_too_large",
        ),
        (too_long, {}, 400, openai.BadRequestError, "context_length_exceeded"),
        (broken, {}, 502, openai.InternalServerError, "upstream_error"),
        (too_busy, {}, 503, openai.InternalServerError, "overloaded"),
        (
            never,
            {"extra_body": {"best_of": 2, "alignment": {"deadline_ms": 50}}},
            504,
            openai.InternalServerError,
            "deadline_exceeded",
        ),
    ],
)
async def test_each_error_has_its_class_and_code(
    arrange: Any, fields: dict[str, Any], status: int, kind: type[openai.APIStatusError], code: str
) -> None:
    async with connected(limits=Limits(max_best_of=4, max_body_bytes=4096)) as (stack, client):
        if arrange is not None:
            arrange(stack)
        request: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, **fields}
        with pytest.raises(kind) as caught:
            await client.chat.completions.create(**request)
        stack.vllm.hold.set()
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert caught.value.type
    assert caught.value.request_id
    assert "secret" not in str(caught.value)


async def test_one_client_may_ask_much_at_once() -> None:
    async with connected() as (_, client):
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(model=f"{MODEL}:best-of-{2 + i % 3}", messages=MESSAGES)
                for i in range(20)
            )
        )
    assert [answer.choices[0].message.content for answer in answers] == ["a" * (2 + i % 3) for i in range(20)]
