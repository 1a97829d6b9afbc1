"""The two forms of a /score request become conversations."""

from __future__ import annotations

import pytest

from rm_server.errors import InvalidRequestError
from rm_server.protocol import Message, ScoreRequest, TextPart

QUESTION = Message(role="user", content="q")
ASKED = {"role": "user", "content": "q"}


def test_responses_each_end_a_copy_of_the_messages() -> None:
    request = ScoreRequest(messages=[QUESTION], responses=["a", ""])
    assert request.to_conversations() == [
        [ASKED, {"role": "assistant", "content": "a"}],
        [ASKED, {"role": "assistant", "content": ""}],
    ]


def test_conversations_are_taken_as_they_are() -> None:
    answer = Message(role="assistant", content="a")
    request = ScoreRequest(conversations=[[QUESTION, answer], [QUESTION]])
    assert request.to_conversations() == [[ASKED, {"role": "assistant", "content": "a"}], [ASKED]]


def test_text_parts_become_lines() -> None:
    parts = [TextPart(type="text", text="one"), TextPart(type="text", text="two")]
    assert Message(role="user", content=parts).as_turn() == {"role": "user", "content": "one\ntwo"}


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (ScoreRequest(), "messages"),
        (ScoreRequest(messages=[QUESTION]), "responses"),
        (ScoreRequest(responses=["a"]), "messages"),
        (ScoreRequest(messages=[], responses=["a"]), "messages"),
        (ScoreRequest(messages=[QUESTION], responses=[]), "responses"),
        (ScoreRequest(conversations=[]), "conversations"),
        (ScoreRequest(conversations=[[QUESTION], []]), "conversations"),
        (ScoreRequest(conversations=[[QUESTION]], responses=["a"]), "conversations"),
        (ScoreRequest(conversations=[[QUESTION]], messages=[QUESTION]), "conversations"),
    ],
)
def test_refuses_half_and_empty_requests(request_: ScoreRequest, param: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        request_.to_conversations()
    assert refused.value.param == param
