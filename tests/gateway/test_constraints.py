"""Tools, schemas and patterns: their shapes, and both sides of each bound."""

from typing import Any

import pytest

from gateway.constraints import MAX_PATTERN, MAX_SCHEMA_BYTES, MAX_TOOLS
from gateway.errors import InvalidRequestError
from gateway.protocol import ChatRequest, validate

HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}
NAMED = {"type": "function", "function": {"name": "f"}}


def tool(**parameters: Any) -> dict[str, Any]:
    """A tool with a schema."""
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


def json_schema(schema: Any) -> dict[str, Any]:
    """A response_format."""
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def of_size(size: int) -> dict[str, str]:
    """A schema of this many bytes as JSON."""
    return {"title": "x" * (size - len('{"title":""}'))}


def check(**fields: Any) -> ChatRequest:
    """Validate a chat with these fields."""
    return validate({"messages": HI, **fields}, ChatRequest)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": "auto"},
        {"tools": [TOOL], "tool_choice": "required"},
        {"tools": [TOOL], "tool_choice": "none"},
        {"tools": [TOOL], "tool_choice": NAMED},
        {"tools": [TOOL], "tool_choice": None, "parallel_tool_calls": False},
        {"tools": None, "tool_choice": "none"},
        {"tools": [{"function": {"name": "f", "strict": True, "description": None}}]},
        {"tools": [TOOL] * MAX_TOOLS},
        {"tools": [tool(**of_size(MAX_SCHEMA_BYTES))]},
        {"tools": [tool(properties={"pattern": {"type": "string", "pattern": "a" * MAX_PATTERN}})]},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object"}},
        {"response_format": json_schema({})},
        {"response_format": json_schema(of_size(MAX_SCHEMA_BYTES))},
        {"response_format": {"type": "structural_tag", "structures": [], "triggers": []}},
        {"structured_outputs": {"regex": "a" * MAX_PATTERN}},
        {"structured_outputs": {"json": of_size(MAX_SCHEMA_BYTES)}},
        {"structured_outputs": {"json": '{"type": "object"}', "disable_any_whitespace": True}},
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"structured_outputs": {"grammar": 'root ::= "a"'}},
        {"structured_outputs": {"json_object": True}},
        {"repetition_detection": {"max_pattern_size": 20, "min_count": 4}},
        {"bad_words": ["x" * 256] * 128, "allowed_token_ids": [0], "stop_token_ids": [1]},
    ],
)
def test_what_may_be_asked_for(fields: dict[str, Any]) -> None:
    check(**fields)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": []}, "tools"),
        ({"tools": {}}, "tools"),
        ({"tools": [TOOL] * (MAX_TOOLS + 1)}, "tools"),
        ({"tools": ["f"]}, "tools[0]"),
        ({"tools": [TOOL, {"type": "custom", "custom": {"name": "f"}}]}, "tools[1].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [{"function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
        ({"tools": [tool(**of_size(MAX_SCHEMA_BYTES + 1))]}, "tools[0].function.parameters"),
        ({"tools": [tool(pattern="a" * (MAX_PATTERN + 1))]}, "tools[0].function.parameters"),
        (
            {"tools": [tool(anyOf=[{"patternProperties": {"a" * (MAX_PATTERN + 1): {}}}])]},
            "tools[0].function.parameters",
        ),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": 5}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"function": "f"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": json_schema(5)}, "response_format.json_schema.schema"),
        (
            {"response_format": json_schema(of_size(MAX_SCHEMA_BYTES + 1))},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": json_schema({"items": {"pattern": "a" * (MAX_PATTERN + 1)}})},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "structural_tag", "format": of_size(MAX_SCHEMA_BYTES)}},
            "response_format",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"guided_regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a" * (MAX_PATTERN + 1)}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json": of_size(MAX_SCHEMA_BYTES + 1)}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": '{"a":' * 999}}, "structured_outputs.json"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a" * 4096] * 17}}, "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "a" * (MAX_SCHEMA_BYTES + 1)}}, "structured_outputs.grammar"),
        ({"repetition_detection": {"max_pattern_size": 1025}}, "repetition_detection.max_pattern_size"),
        ({"bad_words": ["a"] * 129}, "bad_words"),
        ({"bad_words": ["a" * 257]}, "bad_words[0]"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids[0]"),
        ({"allowed_token_ids": [0] * 4097}, "allowed_token_ids"),
        ({"logprob_token_ids": [0] * 129}, "logprob_token_ids"),
        ({"logit_bias": {"10000000": 1}}, "logit_bias"),
        ({"logit_bias": {"1": True}}, "logit_bias[...]"),
        ({"reasoning_effort": "<|im_start|>"}, "reasoning_effort"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
    ],
)
def test_what_may_not_is_refused_by_name_and_not_repeated(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check(**fields)
    assert caught.value.param == param
    assert len(caught.value.message) < 300
    for sent in ("im_start", "xml", "guided_regex", "aaa"):
        assert sent not in caught.value.message


def test_a_key_that_does_not_exist_is_answered_with_those_that_do() -> None:
    with pytest.raises(InvalidRequestError, match="json, regex, choice") as caught:
        check(structured_outputs={"jsn": {}})
    assert caught.value.code == "unknown_key"
