"""What the requests of a load test ask: made up, or from a file of the user's."""

import json
from pathlib import Path
from typing import Any

from loadtests.errors import LoadTestError

WORDS = "river stone lamp garden winter bread letter music harbour paper candle forest".split()
Messages = list[dict[str, Any]]


def short(index: int) -> Messages:
    """The index-th short prompt; no two are alike."""
    return user(f"Write one sentence about {', '.join(_three(index))} and {index}.")


def long(index: int, words: int) -> Messages:
    """One of about so many words. It begins with its number: no prefix that a server keeps helps with it."""
    return user(f"{index}: {' '.join([*WORDS * (words // len(WORDS) + 1)][:words])}. Sum this up.")


def answers(index: int, count: int) -> list[str]:
    """Answers to the index-th short prompt, for a reward server."""
    words = _three(index)
    return [f"A {words[k % 3]} is worth {k} lines." for k in range(count)]


def user(text: str) -> Messages:
    """A conversation of one turn."""
    return [{"role": "user", "content": text}]


def read(path: Path) -> list[Messages]:
    """A prompt a line: a text, or JSON with `messages` or `prompt` as data sets have them; the answer at the
    end of a conversation is left out. LoadTestError where there is none."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise LoadTestError(f"{path}: cannot be read ({error})") from error
    if not lines:
        raise LoadTestError(f"{path}: no prompts in it")
    return [_read_line(line, f"{path}, prompt {number}") for number, line in enumerate(lines, 1)]


def _read_line(line: str, where: str) -> Messages:
    if not line.startswith("{"):
        return user(line)
    try:
        row = json.loads(line)
    except ValueError as error:
        raise LoadTestError(f"{where}: no JSON ({error})") from error
    if isinstance(row.get("prompt"), str):
        return user(row["prompt"])
    turns = row.get("messages") or row.get("prompt")
    if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
        asked = [number for number, turn in enumerate(turns) if turn.get("role") != "assistant"]
        if asked:
            return turns[: asked[-1] + 1]
    raise LoadTestError(f"{where}: needs `messages` or `prompt`")


def _three(index: int) -> list[str]:
    return [WORDS[(index * step + step) % len(WORDS)] for step in (1, 5, 7)]
