"""Candidates of every kind through the whole gateway: what is judged, what comes back, what is counted."""

from typing import Any

import httpx
import pytest

from tests.gateway.fake_servers import Sample
from tests.gateway.stack import Stack, events, running

CALL = {
    "index": 0,
    "id": "c1",
    "type": "function",
    "function": {"name": "f", "arguments": '{"b": 1, "a": 2}'},
}
CANONICAL = '[{"arguments":{"a":2,"b":1},"name":"f"}]'


def thought(name: str, tokens: int = 30) -> Sample:
    """A candidate that thinks long and answers briefly."""
    return Sample("", delta={name: "hmmmmmmmmmm", "content": "ok"}, tokens=tokens)


async def asked(stack: Stack, stream: bool, **fields: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Messages (with `finish_reason` in each) and the rest of the answer, streamed or not."""
    if not stream:
        body = (await stack.chat(**fields)).raise_for_status().json()
        choices = body["choices"]
        return [{**c["message"], "finish_reason": c["finish_reason"]} for c in choices], body
    fields["stream_options"] = {"include_usage": True}
    answer = await stack.chat(stream=True, **fields)
    return folded(answer)


def folded(answer: httpx.Response) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The same of a stream."""
    messages: dict[int, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    *chunks, done = events(answer.text)
    assert done == "[DONE]"
    for chunk in chunks:
        whole |= {name: chunk[name] for name in ("usage", "alignment") if chunk.get(name)}
        for choice in chunk["choices"]:
            message = messages.setdefault(choice["index"], {"content": None})
            for name, value in choice["delta"].items():
                if value is not None:
                    message[name] = value if name == "tool_calls" else (message.get(name) or "") + value
            message["finish_reason"] = choice["finish_reason"] or message.get("finish_reason")
    return [messages[index] for index in sorted(messages)], whole


both = pytest.mark.parametrize("stream", [False, True])


@both
@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
async def test_reasoning_is_returned_and_counted_and_not_judged(name: str, stream: bool) -> None:
    async with running() as stack:
        stack.vllm.samples = [thought(name), Sample("a", tokens=2)]
        [message], whole = await asked(stack, stream, best_of=2)
        assert sorted(stack.rewards.judged) == ["a", "ok"]
    assert (message["content"], message[name]) == ("ok", "hmmmmmmmmmm")
    assert whole["usage"]["completion_tokens"] == 32
    assert whole["alignment"]["usage"] == {
        "selected_completion_tokens": 30,
        "all_completion_tokens": 32,
        "reward_tokens": 20,
    }


async def test_candidates_that_differ_in_their_reasoning_alone_are_judged_once() -> None:
    async with running() as stack:
        stack.vllm.samples = [thought("reasoning"), Sample("", delta={"reasoning": "?", "content": "ok"})]
        messages, whole = await asked(stack, False, best_of=2, n=2)
        assert stack.rewards.judged == ["ok"]
    assert [message["reasoning"] for message in messages] == ["hmmmmmmmmmm", "?"]
    assert whole["alignment"]["rewards"] == [2.0, 2.0]


async def test_reasoning_that_was_cut_off_before_an_answer_is_judged_as_an_empty_one() -> None:
    async with running() as stack:
        stack.rewards.rewards = {"": -1.0}
        stack.vllm.samples = [Sample("", "length", delta={"reasoning": "hmm"}), Sample("a")]
        messages, whole = await asked(stack, False, best_of=2, n=2)
    assert [message["content"] for message in messages] == ["a", ""]
    assert whole["alignment"]["rewards"] == [1.0, -1.0]
    assert whole["alignment"]["degraded"] is None


@both
async def test_a_truncated_candidate_is_judged_like_any_other_and_says_so(stream: bool) -> None:
    async with running() as stack:
        stack.vllm.samples = [Sample("aaaa", "length"), Sample("a")]
        [message], whole = await asked(stack, stream, best_of=2)
    assert (message["content"], message["finish_reason"]) == ("aaaa", "length")
    assert (whole["alignment"]["finished"], whole["alignment"]["degraded"]) == (2, None)


@both
async def test_an_empty_candidate_is_chosen_where_its_reward_is_best(stream: bool) -> None:
    async with running() as stack:
        stack.rewards.rewards = {"": 9.0}
        stack.vllm.samples = [Sample("aaaa"), Sample("")]
        [message], whole = await asked(stack, stream, best_of=2)
    assert (message["content"] or "", message["finish_reason"]) == ("", "stop")
    assert whole["alignment"]["rewards"] == [9.0]


async def test_all_candidates_may_be_empty() -> None:
    async with running() as stack:
        stack.vllm.samples = [Sample(""), Sample(""), Sample("")]
        messages, whole = await asked(stack, False, best_of=3, n=2)
        assert stack.rewards.judged == [""]
    assert [message["content"] for message in messages] == ["", ""]
    assert whole["alignment"]["scored"] == 3


@both
async def test_a_tool_call_is_judged_as_canonical_json_and_returned_as_it_was(stream: bool) -> None:
    async with running() as stack:
        stack.vllm.samples = [Sample("a"), Sample("", "tool_calls", delta={"tool_calls": [CALL]})]
        [message], _ = await asked(stack, stream, best_of=2)
        assert sorted(stack.rewards.judged) == sorted(["a", CANONICAL])
    [call] = message["tool_calls"]
    assert call["function"]["arguments"] == '{"b": 1, "a": 2}'
    assert (message["content"] or None, message["finish_reason"]) == (None, "tool_calls")


async def test_texts_and_calls_of_different_candidates_are_never_mixed() -> None:
    async with running() as stack:
        talking = {"content": "Let me see.", "tool_calls": [CALL]}
        stack.vllm.samples = [Sample("a"), Sample("", "tool_calls", delta=talking), Sample("bb")]
        messages, _ = await asked(stack, False, best_of=3, n=3)
        assert "Let me see.\n" + CANONICAL in stack.rewards.judged
    assert [message["content"] for message in messages] == ["Let me see.", "bb", "a"]
    assert ["tool_calls" in message for message in messages] == [True, False, False]


async def test_arguments_that_were_cut_off_are_judged_as_they_stand() -> None:
    half = {**CALL, "function": {"name": "f", "arguments": '{"b": 1, "a'}}
    async with running() as stack:
        stack.vllm.samples = [Sample("", "length", delta={"tool_calls": [half]}), Sample("a")]
        [message], _ = await asked(stack, False, best_of=2)
        assert '[{"arguments":"{\\"b\\": 1, \\"a","name":"f"}]' in stack.rewards.judged
    assert message["tool_calls"][0]["function"]["arguments"] == '{"b": 1, "a'


@both
async def test_a_refusal_is_a_candidate_and_comes_back_as_one(stream: bool) -> None:
    async with running() as stack:
        stack.vllm.samples = [Sample("", delta={"refusal": "No, I must not."}), Sample("", "abort")]
        [message], whole = await asked(stack, stream, best_of=2)
        assert stack.rewards.judged == ["No, I must not."]
    assert (message["content"] or None, message["refusal"]) == (None, "No, I must not.")
    assert (whole["alignment"]["scored"], whole["alignment"]["degraded"]) == (1, "candidates_failed")


@both
async def test_a_filtered_candidate_is_finished(stream: bool) -> None:
    async with running() as stack:
        stack.vllm.samples = [Sample("aa", "content_filter"), Sample("a")]
        [message], whole = await asked(stack, stream, best_of=2)
    assert (message["content"], message["finish_reason"]) == ("aa", "content_filter")
    assert whole["alignment"]["finished"] == 2
