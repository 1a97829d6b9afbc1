"""What OpenAI's users send, through the whole gateway: what goes up, what is refused, and never a 5xx."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.fields import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    ENGINE_FIELDS,
    GONE_FIELDS,
    NO_EFFECT_FIELDS,
    OWN_FIELDS,
)
from tests.gateway.fake_servers import MODEL
from tests.gateway.stack import CHAT, check_envelope, running

TOOL = {"type": "function", "function": {"name": "f"}}
TEXT = [{"type": "text", "text": "Hi"}]
EVERY_FIELD = sorted(
    CHAT_FIELDS | COMPLETION_FIELDS | ENGINE_FIELDS | NO_EFFECT_FIELDS | OWN_FIELDS | GONE_FIELDS.keys()
)


def user(content: Any) -> list[dict[str, Any]]:
    """One turn."""
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("fields", "up"),
    [
        ({}, {}),
        ({"stop": None, "temperature": None, "tools": None, "stream_options": None}, {}),
        ({"stop": "\n"}, {"stop": "\n"}),
        ({"stop": []}, {"stop": []}),
        ({"logprobs": True, "top_logprobs": 20}, {"logprobs": True, "top_logprobs": 20}),
        ({"logprobs": False, "top_logprobs": 0}, {"logprobs": False, "top_logprobs": 0}),
        ({"max_tokens": 5, "max_completion_tokens": 6}, {"max_tokens": 5, "max_completion_tokens": 6}),
        ({"tools": [TOOL], "parallel_tool_calls": True}, {"tools": [TOOL], "parallel_tool_calls": True}),
        ({"tool_choice": "none"}, {"tool_choice": "none"}),
        ({"seed": -1}, {}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 1}, {"temperature": 1}),
        ({"logit_bias": {"50256": -100}}, {"logit_bias": {"50256": -100}}),
        ({"logit_bias": {}}, {"logit_bias": {}}),
        ({"reasoning_effort": "minimal"}, {"reasoning_effort": "minimal"}),
        ({"user": "me", "store": True, "metadata": {"a": "b"}, "service_tier": "auto"}, {}),
        ({"modalities": ["text"], "verbosity": "low", "prediction": {"type": "content", "content": "x"}}, {}),
        ({"prompt_cache_key": "k", "safety_identifier": "s", "prompt_cache_retention": "24h"}, {}),
        ({"ignore_eos": True, "stop": None, "min_tokens": 3}, {"ignore_eos": True, "min_tokens": 3}),
        ({"best_of": 1, "n": 1}, {"n": 1}),
        ({"messages": user(TEXT)}, {"messages": user(TEXT)}),
        (
            {"messages": [{"role": "developer", "content": "x"}]},
            {"messages": [{"role": "developer", "content": "x"}]},
        ),
        ({"messages": user("")}, {"messages": user("")}),
        ({"messages": user([])}, {"messages": user([])}),
    ],
)
async def test_what_is_taken(fields: dict[str, Any], up: dict[str, Any]) -> None:
    async with running() as stack:
        answer = await stack.chat(**fields)
        assert answer.status_code == 200, answer.text
        assert "x-ignored-fields" not in answer.headers
        assert stack.vllm.requests[0].body == {"model": MODEL, "messages": user("Hi"), **up}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": []}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}},
            "tool_choice.type",
        ),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"guided_regex": "a*"}, "guided_regex"),
        ({"guided_json": {}}, "guided_json"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": False, "stream_options": {}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"stream": True, "stream_options": "usage"}, "stream_options"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 5}, "top_logprobs"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"messages": user(5)}, "messages[0].content"),
        ({"messages": user(["Hi"])}, "messages[0].content[0]"),
        ({"messages": user([{"type": "text"}])}, "messages[0].content[0].text"),
        ({"messages": user([{"type": "image_url", "image_url": {"url": "http://x/"}}])}, "media"),
        ({"messages": [{"role": "user", "content": "x", "name": 5}]}, "messages[0].name"),
        (
            {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": ""}}]},
            "messages[0].function_call",
        ),
    ],
)
@pytest.mark.parametrize("best_of", [1, 2])
async def test_what_is_refused_by_name(fields: dict[str, Any], param: str, best_of: int) -> None:
    async with running() as stack:
        error = check_envelope(await stack.chat(**fields, best_of=best_of), 400)
        assert error["param"] == param
        assert stack.vllm.requests == []


async def test_the_text_of_a_part_goes_up_without_what_stands_beside_it() -> None:
    part = {"type": "text", "text": "Hi", "uuid": "u", "image_url": {"url": "http://169.254.169.254/"}}
    async with running() as stack:
        assert (await stack.chat(messages=user([part]))).status_code == 200
        assert stack.vllm.requests[0].body["messages"] == user(TEXT)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
near_misses = st.sampled_from(
    [
        [TOOL],
        TOOL,
        [{"function": TOOL}],
        user(TEXT),
        [{"role": "assistant", "tool_calls": [TOOL]}],
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        {"json": "{}"},
        {"include_usage": True},
        {"1": 1.5},
        ["a"] * 5,
        [[1], ["a"]],
    ]
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    bodies=st.lists(
        st.dictionaries(st.sampled_from(EVERY_FIELD), json_values | near_misses, max_size=4), max_size=20
    )
)
async def test_whatever_the_fields_hold_it_is_never_a_5xx(bodies: list[dict[str, Any]]) -> None:
    async with running() as stack:
        for fields in bodies:
            for path, body in (
                (CHAT, {"model": MODEL, "messages": user("Hi"), **fields}),
                ("/v1/completions", {"model": MODEL, "prompt": "Hi", **fields}),
            ):
                answer = await stack.http.post(
                    path, content=json.dumps(body), headers={"content-type": "application/json"}
                )
                assert answer.status_code in {200, 400, 404}, (answer.status_code, body)
                if answer.status_code != 200:
                    check_envelope(answer, answer.status_code)
