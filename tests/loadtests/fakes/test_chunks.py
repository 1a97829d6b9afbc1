"""The fake's bytes are those of a vLLM server: what OpenAI's client reads out of the stream is the answer."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.fakes.chunks import PROMPT_TOKENS, Shape, text, whole_answer, writes


def shape(*lengths: int, chat: bool = True, **fields: Any) -> Shape:
    return Shape(chat=chat, lengths=lengths, reasons=("stop",) * len(lengths), **fields)


def events(wanted: Shape) -> list[Any]:
    """The data of all events, through the framing."""
    body = b""
    raw = b"".join(write.data for write in writes(wanted))
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        body, raw = body + raw[: int(size, 16)], raw[int(size, 16) + 2 :]
    found = [part.removeprefix(b"data: ") for part in body.split(b"\n\n") if part]
    return [part if part == b"[DONE]" else json.loads(part) for part in found]


def test_a_stream_of_one_choice_token_by_token() -> None:
    found = events(shape(3, include_usage=True))
    assert [event["choices"][0]["delta"] for event in found[:-2]] == [
        {"role": "assistant", "content": ""},
        {"content": "river "},
        {"content": "stone "},
        {"content": "lamp "},
    ]
    assert [event["choices"][0]["finish_reason"] for event in found[:-2]] == [None, None, None, "stop"]
    assert found[-2]["choices"] == []
    assert found[-2]["usage"] == {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": 3,
        "total_tokens": PROMPT_TOKENS + 3,
    }
    assert found[-1] == b"[DONE]"


def test_choices_decode_in_step_and_end_by_themselves() -> None:
    found = events(shape(1, 3, chat=False))[:-1]
    order = [(event["choices"][0]["index"], event["choices"][0]["finish_reason"]) for event in found]
    assert order == [(0, "stop"), (1, None), (1, None), (1, "stop")]


def test_the_write_in_which_the_last_candidate_ends_is_marked() -> None:
    found = writes(shape(1, 3))
    assert [(write.steps, write.ends_all) for write in found] == [
        (1, False),
        (1, False),
        (1, True),
        (0, False),
    ]
    found = writes(shape(1, 5, burst=2))
    assert [(write.steps, write.ends_all) for write in found] == [
        (2, False),
        (2, False),
        (1, True),
        (0, False),
    ]


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4), st.booleans(), st.integers(1, 20), st.integers(1, 7)
)
def test_pieces_add_up_to_the_whole_answer(lengths: list[int], chat: bool, interval: int, burst: int) -> None:
    wanted = shape(*lengths, chat=chat, continuous_usage=True, stream_interval=interval, burst=burst)
    said, counts = [""] * len(lengths), [0] * len(lengths)
    for event in events(wanted)[:-1]:
        choice = event["choices"][0]
        said[choice["index"]] += choice["delta"]["content"] if chat else choice["text"]
        counts[choice["index"]] = event["usage"]["completion_tokens"]
    assert counts == lengths
    whole = json.loads(whole_answer(wanted))
    assert said == [choice["message"]["content"] if chat else choice["text"] for choice in whole["choices"]]
    assert whole["usage"]["completion_tokens"] == sum(lengths)
    assert len({text(wanted, index) for index in range(len(lengths))}) == len(lengths)


@pytest.mark.parametrize(("interval", "sizes"), [(1, [1] * 9), (4, [1, 3, 4, 1]), (16, [1, 8])])
def test_stream_interval(interval: int, sizes: list[int]) -> None:
    found = events(shape(9, chat=False, stream_interval=interval))[:-1]
    assert [len(event["choices"][0]["text"].split()) for event in found] == sizes
