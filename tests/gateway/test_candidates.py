"""Messages from stream pieces, and what of them is judged."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.candidates import Candidate, fold_logprobs, fold_message, judged_messages, judged_text
from gateway.policy import ChoiceDelta

CALL: dict[str, Any] = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Bern", "at": 1}'},
}


def test_texts_are_joined_and_reasoning_kept_apart() -> None:
    deltas = [
        {"role": "assistant", "content": ""},
        {"reasoning": "hm"},
        {"reasoning": "m"},
        {"content": "Go"},
        {"content": "od"},
    ]
    assert fold_message(deltas) == {
        "role": "assistant",
        "content": "Good",
        "refusal": None,
        "reasoning": "hmm",
    }


def test_a_message_without_a_word_has_empty_content_and_a_refusal_has_none() -> None:
    assert fold_message([{"role": "assistant"}])["content"] == ""
    refused = fold_message([{"refusal": "No"}, {"refusal": "!"}])
    assert (refused["content"], refused["refusal"]) == (None, "No!")


@given(st.lists(st.integers(1, 9), min_size=1, max_size=10))
def test_tool_calls_are_assembled_however_they_were_cut(cuts: list[int]) -> None:
    arguments = CALL["function"]["arguments"]
    pieces = [{"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "other", "arguments": "{}"}}]}]
    pieces.append({"tool_calls": [{**CALL, "index": 0, "function": {"name": "weather", "arguments": ""}}]})
    start = 0
    for cut in [*cuts, len(arguments)]:
        pieces.append(
            {"tool_calls": [{"index": 0, "function": {"arguments": arguments[start : start + cut]}}]}
        )
        start += cut
    message = fold_message(pieces)
    assert message["content"] is None
    assert message["tool_calls"][0] == CALL
    assert message["tool_calls"][1]["function"] == {"name": "other", "arguments": "{}"}


def test_logprobs_of_both_endpoints_are_joined() -> None:
    assert fold_logprobs([None, None]) is None
    chat = fold_logprobs([{"content": [1], "refusal": None}, None, {"content": [2, 3], "refusal": None}])
    assert chat == {"content": [1, 2, 3], "refusal": None}
    completion = fold_logprobs(
        [{"tokens": ["a"], "token_logprobs": [-1.0]}, {"tokens": ["b"], "token_logprobs": [-2.0]}]
    )
    assert completion == {"tokens": ["a", "b"], "token_logprobs": [-1.0, -2.0]}
    assert fold_logprobs([{"content": None}, {"content": [1]}]) == {"content": [1]}


def test_only_a_proper_end_is_finished() -> None:
    for reason, finished in [
        ("stop", True),
        ("length", True),
        ("tool_calls", True),
        ("abort", False),
        (None, False),
    ]:
        candidate = Candidate(0)
        candidate.add(ChoiceDelta(index=0, text="x", finish_reason=reason))
        assert candidate.finished is finished


def test_tool_calls_are_judged_as_canonical_json_after_the_text() -> None:
    canonical = '[{"arguments":{"at":1,"city":"Bern"},"name":"weather"}]'
    assert judged_text("Let me see.", [CALL]) == "Let me see.\n" + canonical
    assert judged_text(None, [CALL]) == canonical
    respaced = {"function": {"name": "weather", "arguments": json.dumps({"at": 1, "city": "Bern"}, indent=2)}}
    assert judged_text(None, [respaced]) == canonical
    assert judged_text("", [{"function": {"name": "f", "arguments": "{not json"}}]) == (
        '[{"arguments":"{not json","name":"f"}]'
    )


def test_a_conversation_is_judged_as_roles_and_texts() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "kind"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
    ]
    assert judged_messages(messages) == [
        {"role": "system", "content": "Be\nkind"},
        {"role": "assistant", "content": '[{"arguments":{},"name":"f"}]'},
        {"role": "tool", "content": "4"},
    ]


@pytest.mark.parametrize(
    "arguments", ["[" * 100_000, '{"a":' * 2000, '{"a": "\\ud800"}', "NaN", '{"a": 1, "a": 2}', "[1]", ""]
)
def test_arguments_that_are_no_plain_json_object_are_judged_as_they_stand(arguments: str) -> None:
    calls = [{"function": {"name": "f", "arguments": arguments}}]
    text = judged_text(None, calls)
    assert json.loads(text) == [{"name": "f", "arguments": arguments}]
    assert text.encode()
