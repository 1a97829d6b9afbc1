"""A: the policy says 200 and then nonsense. What cannot be read is left out, and never becomes a 500."""

import json
from typing import Any

import pytest

from tests.faults.fakes import answering, streaming
from tests.faults.world import CANARY_UPSTREAM, World, texts
from tests.gateway.fake_servers import Sample, closing_chunks, event
from tests.gateway.stack import check_envelope

ALONE = pytest.mark.parametrize("world", [{"replicas": 1}], indirect=True)
"""Nobody else can be asked for what was lost."""
DONE = b"data: [DONE]\n\n"
NOT_JSON = {
    "HTML": b"<html><body>canary</body></html>",
    "empty": b"",
    "blank": b" \n",
    "truncated": b'{"choices": [{"index": 0, "mess',
    "truncated in an escape": b'{"choices": "\\u12',
    "two objects": b"{}{}",
    "trailing text": b"{} canary",
    "a list": b"[]",
    "a number": b"42",
    "a text": b'"canary"',
    "null": b"null",
    "true": b"true",
    "NaN": b'{"usage": {"x": NaN}}',
    "Infinity": b'{"choices": -Infinity}',
    "single quotes": b"{'choices': []}",
    "a comment": b"{/* */}",
    "UTF-16": '{"choices": []}'.encode("utf-16"),
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "depth": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "usage that is a list": b'{"usage": []}',
    "usage that is a text": b'{"usage": "canary"}',
    "an event stream": b'data: {"choices": []}\n\ndata: [DONE]\n\n',
}


async def test_a_whole_answer_that_is_not_json_is_a_502(world: World) -> None:
    seen = {}
    for name, body in NOT_JSON.items():
        world.policies_do(answering(body))
        seen[name] = (await world.chat()).status_code
    assert seen == dict.fromkeys(NOT_JSON, 502)


ODD_BUT_JSON = [
    b"{}",
    b'{"choices": []}',
    b'{"choices": null, "usage": null}',
    b'{"choices": [{"message": {"content": null}}], "usage": {"prompt_tokens": -1}}',
    b'{"usage": {"completion_tokens": "many"}, "x": 1e999}'.replace(b"1e999", b"1e99"),
    b' \n{"usage": {"prompt_tokens": 1e3}} ',
    b'{"choices": [], "choices": [], "usage": {"completion_tokens": 12345678901234567890123}}',
]


async def test_json_of_any_shape_passes_byte_for_byte(world: World) -> None:
    for body in ODD_BUT_JSON:
        world.policies_do(answering(body))
        answer = await world.chat()
        assert (answer.status_code, answer.content) == (200, body)


def with_choice(text: str) -> bytes:
    """An event with this for its only choice."""
    return b'data: {"choices": [' + text.encode() + b"]}\n\n"


def said(text: str) -> bytes:
    """An event whose second candidate's delta is this."""
    return with_choice('{"index": 1, "finish_reason": "stop", "delta": ' + text + "}")


GARBAGE = {
    "text": b"data: canary\n\n",
    "HTML": b"data: <html>\n\n",
    "truncated": b'data: {"choices": [\n\n',
    "a list": b"data: []\n\n",
    "null": b"data: null\n\n",
    "no choices": b"data: {}\n\n",
    "choices null": b'data: {"choices": null}\n\n',
    "choices an object": b'data: {"choices": {}}\n\n',
    "a choice that is a number": with_choice("1"),
    "a choice that is null": with_choice("null"),
    "a choice without index": with_choice("{}"),
    "an index that is a text": with_choice('{"index": "1"}'),
    "a negative index": with_choice('{"index": -1}'),
    "an index beyond": with_choice('{"index": 2}'),
    "an index far beyond": with_choice('{"index": 99999999999999999999}'),
    "an index that is true": with_choice('{"index": true}'),
    "an index with a fraction": with_choice('{"index": 0.5}'),
    "a delta that is a list": said("[]"),
    "a delta that is a text": said('"canary"'),
    "content that is a number": said('{"content": 5}'),
    "content that is a list": said('{"content": ["x"]}'),
    "NaN as content": said('{"content": NaN}'),
    "half a surrogate pair": said('{"content": "\\ud800"}'),
    "half a surrogate pair in a field of its own": said('{"odd": "\\udfff"}'),
    "wrong UTF-8": b'data: {"choices": [{"index": 1, "delta": {"content": "\xff"}}]}\n\n',
    "a finish_reason that is a number": with_choice('{"index": 1, "finish_reason": 5}'),
    "NaN log-probabilities": with_choice(
        '{"index": 1, "delta": {}, "logprobs": {"content": [{"logprob": NaN}]}}'
    ),
    "infinite log-probabilities": with_choice(
        '{"index": 1, "text": "", "logprobs": {"token_logprobs": [-Infinity]}}'
    ),
    "log-probabilities that are a list": with_choice('{"index": 1, "logprobs": []}'),
    "token ids that are texts": with_choice('{"index": 1, "token_ids": ["a"]}'),
    "tool calls that are an object": said('{"tool_calls": {}}'),
    "a tool call that is a text": said('{"tool_calls": ["x"]}'),
    "a tool call's index that is a text": said('{"tool_calls": [{"index": "x"}]}'),
    "a tool call's function that is a text": said('{"tool_calls": [{"function": "x"}]}'),
    "arguments that are an object": said('{"tool_calls": [{"function": {"arguments": {}}}]}'),
    "depth": said('{"odd": ' + "[" * 5000 + "]" * 5000 + "}"),
    "an error": event({"error": {"message": CANARY_UPSTREAM, "code": 500}}),
    "an error as a text": event({"error": CANARY_UPSTREAM}),
    "an error of vLLM's old kind": event({"object": "error", "message": CANARY_UPSTREAM}),
    "an event beyond its bound": b"data: " + b"x" * (9 * 1024 * 1024),
}
FIRST = b"".join(event(chunk) for chunk in closing_chunks("chat", 0, Sample("canary-free")))


@ALONE
async def test_garbage_alone_is_a_502_and_beside_a_candidate_costs_only_its_own(world: World) -> None:
    alone: dict[str, Any] = {}
    beside: dict[str, Any] = {}
    for name, garbage in GARBAGE.items():
        world.policies_do(streaming([garbage, DONE]))
        alone[name] = [(await world.chat(best_of=2, stream=stream)).status_code for stream in (False, True)]
        world.policies_do(streaming([FIRST, garbage, DONE]))
        answer = await world.chat(best_of=2)
        beside[name] = answer.status_code
        if answer.status_code == 200:
            record = answer.json()["alignment"]
            beside[name] = (texts(answer), record["finished"], record["degraded"])
    assert alone == {name: [502, 502] for name in GARBAGE}
    assert beside == dict.fromkeys(GARBAGE, (["canary-free"], 1, "candidates_failed"))


HARMLESS = {
    "a comment": b": ping\n\n",
    "an event without data": b"event: ping\n\n",
    "an empty line": b"\n\n",
    "no choices in a chunk": b'data: {"choices": []}\n\n',
    "fields nobody knows": b'data: {"choices": [], "odd": {"a": [1e300]}, "usage": null}\n\n',
    "CRLF": b'data: {"choices": []}\r\n\r\n',
    "no space": b'data:{"choices": []}\n\n',
    "an id and a name": b'id: 1\nevent: message\ndata: {"choices": []}\n\n',
    "data in two lines": b'data: {"choices":\ndata: []}\n\n',
    "a megabyte": b'data: {"choices": [], "odd": "' + b"x" * 2**20 + b'"}\n\n',
    "more of a candidate that has ended": FIRST,
    "error null": b'data: {"choices": [], "error": null}\n\n',
}


async def test_what_is_odd_and_harmless_is_overlooked(world: World) -> None:
    second = b"".join(event(chunk) for chunk in closing_chunks("chat", 1, Sample("x")))
    for name, odd in HARMLESS.items():
        world.policies_do(streaming([odd, FIRST, odd, second, odd, DONE, b"data: canary after the end\n\n"]))
        answer = await world.chat(best_of=2)
        assert (answer.status_code, texts(answer)) == (200, ["canary-free"]), name
        assert answer.json()["alignment"]["degraded"] is None, name


IMPOSSIBLE: list[object] = [
    {"prompt_tokens": -1},
    {"completion_tokens": -5},
    {"completion_tokens": 1e308},
    {"completion_tokens": "3"},
    {"prompt_tokens": True},
    {"prompt_tokens": 10**30},
    [],
    "many",
]


@ALONE
async def test_impossible_counts_cost_what_follows_and_are_not_counted(world: World) -> None:
    for usage in IMPOSSIBLE:
        counted = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
        world.policies_do(streaming([FIRST, counted, DONE]))
        before = world.value("tokens_total", kind="completion")
        answer = await world.chat(best_of=2)
        assert texts(answer) == ["canary-free"]
        assert answer.json()["alignment"]["degraded"] == "candidates_failed"
        assert world.value("tokens_total", kind="completion") - before == 3


async def test_nothing_but_an_end_is_a_502(world: World) -> None:
    world.policies_do(streaming([DONE]))
    check_envelope(await world.chat(best_of=2), 502)
