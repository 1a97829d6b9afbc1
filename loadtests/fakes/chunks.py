"""What vLLM writes, as bytes made once: chunks of a stream in the order of decoding, and the whole answer.

All candidates decode in step, as in one batch: each that has not ended says one token a step. The first step
of a chat brings the role chunks too; the chunk that ends a candidate holds its last tokens and its
finish_reason. With `stream_interval` K a candidate's chunks hold K tokens from the second on.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import msgspec

from loadtests.fakes.http_server import chunk

WORDS = " river stone lamp garden winter bread letter music harbour paper candle forest".split(" ")[1:]
PROMPT_TOKENS = 300
MODEL = "fake"


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """All that the bytes of an answer depend on."""

    chat: bool
    lengths: tuple[int, ...]
    """Tokens of each choice."""
    reasons: tuple[str, ...]
    """finish_reason of each choice."""
    include_usage: bool = False
    continuous_usage: bool = False
    stream_interval: int = 1
    burst: int = 1


class Write(msgspec.Struct, frozen=True):
    """What one write to the socket holds."""

    data: bytes
    steps: int
    """Steps of decoding in it."""
    ends_all: bool
    """The last candidate ends in it."""


def word(choice: int, token: int) -> str:
    """What a choice says at a step: no two choices say the same."""
    return f"{WORDS[(token * (choice + 1) + choice) % len(WORDS)]} "


def text(shape: Shape, choice: int) -> str:
    """All that a choice says."""
    return "".join(word(choice, token) for token in range(shape.lengths[choice]))


@lru_cache(maxsize=256)
def writes(shape: Shape) -> tuple[Write, ...]:
    """The stream, write by write, framed as HTTP chunks of one event each; the last holds usage and
    `[DONE]`."""
    last = max(shape.lengths)
    steps = [b"".join(map(chunk, _step(shape, step))) for step in range(1, last + 1)]
    found = []
    for start in range(0, last, shape.burst):
        part = steps[start : start + shape.burst]
        found.append(Write(b"".join(part), len(part), start + len(part) == last))
    tail = [_event(shape, [], _usage(sum(shape.lengths)))] if shape.include_usage else []
    return (*found, Write(b"".join(map(chunk, [*tail, b"data: [DONE]\n\n"])), 0, ends_all=False))


@lru_cache(maxsize=256)
def whole_answer(shape: Shape) -> bytes:
    """The answer that is not streamed."""
    choices = []
    for index, reason in enumerate(shape.reasons):
        said: dict[str, Any] = {"text": text(shape, index)}
        if shape.chat:
            said = {"message": {"role": "assistant", "content": text(shape, index)}}
        choices.append({"index": index, **said, "logprobs": None, "finish_reason": reason})
    kind = "chat.completion" if shape.chat else "text_completion"
    return msgspec.json.encode(
        {**_head(shape, kind), "choices": choices, "usage": _usage(sum(shape.lengths))}
    )


def _step(shape: Shape, step: int) -> Iterator[bytes]:
    """The events of the step-th token, 1-based."""
    if step == 1 and shape.chat:
        for index in range(len(shape.lengths)):
            delta = {"role": "assistant", "content": ""}
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            yield _event(shape, [choice], _usage(0) if shape.continuous_usage else None)
    every = shape.stream_interval
    for index, length in enumerate(shape.lengths):
        if step == length or (step < length and (step == 1 or step % every == 0)):
            yield _piece(shape, index, step)


def _piece(shape: Shape, index: int, step: int) -> bytes:
    every, length = shape.stream_interval, shape.lengths[index]
    multiple = (step - 1) // every * every  # where the chunk before this one ended, from the second on
    said = "".join(word(index, token) for token in range(min(max(multiple, 1), step - 1), step))
    piece = {"delta": {"content": said}} if shape.chat else {"text": said}
    reason = shape.reasons[index] if step == length else None
    choice = {"index": index, **piece, "logprobs": None, "finish_reason": reason}
    return _event(shape, [choice], _usage(step) if shape.continuous_usage else None)


def _event(shape: Shape, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
    kind = "chat.completion.chunk" if shape.chat else "text_completion"
    value = {**_head(shape, kind), "choices": choices}
    if usage is not None:
        value["usage"] = usage
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _head(shape: Shape, kind: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-fake" if shape.chat else "cmpl-fake",
        "object": kind,
        "created": 1,
        "model": MODEL,
    }


def _usage(completion_tokens: int) -> dict[str, int]:
    total = PROMPT_TOKENS + completion_tokens
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "total_tokens": total,
        "completion_tokens": completion_tokens,
    }
