"""Answered, refused, declared or broken: nothing else."""

import json

import pytest

from loadtests.http_client import Reply
from loadtests.outcomes import outcome

CHUNK = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
ERROR = {"error": {"message": "m", "type": "t", "param": None, "code": "c"}}
EVENT = b"data: " + json.dumps(ERROR).encode() + b"\n\n"
DONE = b"data: [DONE]\n\n"


def reply(body: bytes, status: int = 200, error: str | None = None) -> Reply:
    return Reply(status=status, pieces=[body], times=[0.0], error=error)


@pytest.mark.parametrize(
    ("received", "streamed", "expected"),
    [
        (reply(b'{"choices": [{}]}'), False, "answered"),
        (reply(b'{"choices": []}'), False, "broken"),
        (reply(b'{"choices": [{}]}', error="cut"), False, "broken"),
        (reply(json.dumps(ERROR).encode(), 503), False, "refused"),
        (reply(json.dumps(ERROR).encode(), 503), True, "refused"),
        (reply(b'{"error": "m"}', 500), False, "broken"),
        (reply(b"Internal Server Error", 500), False, "broken"),
        (reply(CHUNK + DONE), True, "answered"),
        (reply(CHUNK + EVENT), True, "declared"),
        (reply(CHUNK + EVENT + DONE), True, "broken"),  # a client would take it for whole
        (reply(CHUNK), True, "broken"),
        (reply(CHUNK + EVENT, error="cut"), True, "broken"),
    ],
)
def test_outcomes(received: Reply, streamed: bool, expected: str) -> None:
    assert outcome(received, streamed=streamed) == expected
