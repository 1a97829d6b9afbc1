"""What counts as an answer, and what does not."""

from collections.abc import AsyncIterator

import pytest

from loadtests.client import Client, read_stream, read_whole
from loadtests.errors import LoadTestError

CHUNK = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n'
ROLE = b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}\n'
USAGE = b'data: {"choices": [], "usage": {"completion_tokens": 7}}\n'
DONE = b"data: [DONE]\n"


async def lines(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
        yield b"\n"


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
    answer = read_whole(raw)
    assert (answer.tokens, answer.error) == (tokens, error)


@pytest.mark.parametrize(
    ("events", "has_first", "tokens", "error"),
    [
        ((ROLE, CHUNK, CHUNK, USAGE, DONE), True, 7, None),
        ((b": heartbeat\n", ROLE, DONE), False, 0, None),
        ((b'data: {"choices": [{"text": "a"}]}\n', DONE), True, 0, None),
        ((CHUNK, CHUNK), True, 0, "stream cut"),
        ((), False, 0, "stream cut"),
        ((CHUNK, b'data: {"error": {"message": "x"}}\n', DONE), True, 0, "error event"),
        ((b"data: {\n", DONE), False, 0, "event that cannot be read"),
        ((b"data: 1\n", DONE), False, 0, "event that cannot be read"),
    ],
)
async def test_a_stream(events: tuple[bytes, ...], has_first: bool, tokens: int, error: str | None) -> None:
    answer = await read_stream(lines(*events))
    assert (answer.first_at is not None, answer.tokens, answer.error) == (has_first, tokens, error)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense"])
async def test_a_server_that_is_not_there_is_one_line(url: str) -> None:
    async with Client(url) as client:
        with pytest.raises(LoadTestError, match="no server answers there") as caught:
            await client.first_model()
    assert caught.value.exit_code == 2
