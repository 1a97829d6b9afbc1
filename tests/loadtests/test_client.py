"""What counts as an answer, and what does not."""

import pytest

from loadtests.client import Client, understand
from loadtests.errors import LoadTestError
from loadtests.http_client import Reply

CHUNK = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n'
ROLE = b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}\n'
USAGE = b'data: {"choices": [], "usage": {"completion_tokens": 7}}\n'
DONE = b"data: [DONE]\n"


def reply(*pieces: bytes, error: str | None = None, status: int = 200) -> Reply:
    """Piece k arrived at k seconds."""
    return Reply(status=status, pieces=list(pieces), times=list(map(float, range(len(pieces)))), error=error)


@pytest.mark.parametrize(
    ("raw", "tokens", "error"),
    [
        (b'{"choices": [{}], "usage": {"completion_tokens": 5}}', 5, None),
        (b'{"choices": [{}]}', 0, None),
        (b'{"scores": [0.5], "usage": {"tokens": 9}}', 9, None),
        (b'{"choices": []}', 0, "empty answer"),
        (b"[]", 0, "no JSON"),
        (b"<html>", 0, "no JSON"),
    ],
)
def test_a_whole_answer(raw: bytes, tokens: int, error: str | None) -> None:
    answer = understand(reply(raw), streamed=False)
    assert (answer.tokens, answer.error) == (tokens, error)


@pytest.mark.parametrize(
    ("events", "first_at", "tokens", "error"),
    [
        ((ROLE, CHUNK, CHUNK, USAGE, DONE), 1.0, 7, None),
        ((b": heartbeat\n", ROLE, DONE), None, 0, None),
        ((b'data: {"choices": [{"text": "a"}]}\n', DONE), 0.0, 0, None),
        ((ROLE + CHUNK[:9], CHUNK[9:-1], b"\n", DONE), 2.0, 0, None),  # there once its line is whole
        ((CHUNK, CHUNK), 0.0, 0, "stream cut"),
        ((), None, 0, "stream cut"),
        ((CHUNK, b'data: {"error": {"message": "x"}}\n', DONE), 0.0, 0, "error event"),
        ((b"data: {\n", DONE), None, 0, "event that cannot be read"),
        ((b"data: 1\n", DONE), None, 0, "event that cannot be read"),
    ],
)
def test_a_stream(events: tuple[bytes, ...], first_at: float | None, tokens: int, error: str | None) -> None:
    answer = understand(reply(*events), streamed=True)
    assert (answer.first_at, answer.tokens, answer.error) == (first_at, tokens, error)


@pytest.mark.parametrize("streamed", [True, False])
def test_what_is_no_answer(streamed: bool) -> None:
    assert understand(reply(b"{}", status=503), streamed=streamed).error == "status 503"
    assert understand(reply(status=0, error="no connection"), streamed=streamed).error == "no connection"
    assert understand(reply(CHUNK, error="time-out"), streamed=streamed).error == "time-out"
    assert understand(reply(CHUNK, error="cut"), streamed=streamed).error == (
        "stream cut" if streamed else "cut"
    )


async def test_a_server_that_is_not_there_is_one_line() -> None:
    async with Client("http://127.0.0.1:9") as client:
        with pytest.raises(LoadTestError, match="no server answers there") as caught:
            await client.first_model()
    assert caught.value.exit_code == 2
