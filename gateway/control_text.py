"""Control tokens spelled in messages: broken, refused or let through.

A backslash after the first character breaks them: `<\\|im_start|>`. It is in every vocabulary (a zero-width
character may become the unknown token, itself a control token), no normaliser drops it and no template trims
it (as they do white space), a reader sees what was there and what was done, and nothing turns it back.

What is broken: every string in the fields that a chat template can render, names, tool results and decoded
arguments of tool calls included, and what only forms a token where one text ends and the next begins. Raw
prompts of /v1/completions may hold control tokens, so they are left alone.
"""

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from gateway.config import ControlTextMode
from gateway.control_tokens import COMMON, ESCAPE, MARKS, SHAPES_BEGIN, breakable, pattern
from gateway.errors import InvalidRequestError
from gateway.strict_json import MAX_DEPTH

RENDERED = ("messages", "tools", "tool_choice", "documents", "chat_template_kwargs")
"""The fields whose strings can reach a chat template. `tool_choice` names one of the tools."""
T = TypeVar("T")
MAX_BROKEN = 10_000
"""Control tokens in one field; more are refused, whatever the mode: no conversation needs them."""
_PART_TEXTS = ("text", "refusal", "thinking")

Edit = Callable[[str], str]


@dataclass(frozen=True)
class Runs(Generic[T]):
    """Something for each run of strings that a template may put one after the other, in their order."""

    said: T
    """What the turns say, but for the assistant's."""
    answered: T
    """What the assistant's turns say."""
    other: T
    """Every other string."""


class ControlText:
    """A guard for the chats of one policy.

    Args:
        tokens: the policy's own special tokens, where they are known.
    """

    def __init__(self, mode: ControlTextMode, tokens: Collection[str] = COMMON) -> None:
        self._mode = mode
        self.learn(tokens)

    def learn(self, tokens: Collection[str]) -> None:
        """From now on these are the policy's control tokens, beside the shapes that are always ones."""
        words = breakable(tokens)
        anywhere, in_answers = re.compile(pattern(words)), re.compile(pattern(words - MARKS))
        self._tokens = Runs(said=anywhere, answered=in_answers, other=anywhere)
        self._suspicious = re.compile(b"|".join(map(re.escape, sorted(_needles(words)))))

    def apply(self, body: dict[str, Any], raw: bytes) -> tuple[dict[str, Any], int]:
        """The body with its control tokens broken, and how many these were. The body itself is not changed.

        Args:
            raw: the bytes that `body` was read from; most say at a glance that there is nothing to do.

        Raises:
            InvalidRequestError: there are some, and the mode is "refuse"; or there are more than 10,000.
        """
        if self._mode == "allow" or self._suspicious.search(raw) is None:
            return body, 0
        count, changed = 0, {}
        for name in RENDERED:
            if (value := body.get(name)) is not None:
                cleaned, found = self._clean(name, value)
                if found:
                    count += found
                    changed[name] = cleaned
        return ({**body, **changed} if changed else body), count

    def text(self, text: str) -> str:
        """A single text, broken, whatever the mode and however many there are."""
        return self._tokens.said.sub(lambda match: match[0] + ESCAPE, text)

    def _clean(self, name: str, value: Any) -> tuple[Any, int]:
        runs: Runs[list[str]] = Runs([], [], [])
        _edited(name, value, _recorder(runs))
        tokens = self._tokens
        said, in_said = _broken(runs.said, tokens.said)
        answered, in_answered = _broken(runs.answered, tokens.answered)
        other, in_other = _broken(runs.other, tokens.other)
        found = in_said + in_answered + in_other
        if found > MAX_BROKEN or (found and self._mode == "refuse"):
            raise InvalidRequestError(
                "A text has a control token of the model in it, which is not allowed here.",
                param=name,
                code="control_text",
            )
        return (_edited(name, value, _player(Runs(said, answered, other))) if found else value), found


def _broken(texts: list[str], token: re.Pattern[str]) -> tuple[list[str], int]:
    """The texts, as they stand one after the other, with every token in them broken, and how many these were.

    Each place where a token begins gets its backslash, overlapping ones too. No token holds a backslash, so
    none can form anew.
    """
    places = [match.end() for match in islice(token.finditer("".join(texts)), MAX_BROKEN + 1)]
    if not places:
        return texts, 0
    waiting, end, broken = iter([*places, -1]), 0, []
    place = next(waiting)
    for text in texts:
        start, end, pieces, done = end, end + len(text), [], 0
        while start < place <= end:
            pieces.append(text[done : place - start])
            done, place = place - start, next(waiting)
        broken.append(ESCAPE.join([*pieces, text[done:]]))
    return broken, len(places)


def _needles(words: Collection[str]) -> set[bytes]:
    """What the bytes of a body hold if there is a control token in it: how one begins, its first character at
    the end of a string (the rest may begin the next one), or an escape, behind which anything may hide."""
    beginnings = {*SHAPES_BEGIN, *(word[:2] for word in words)}
    ends = {f'{beginning[0]}"' for beginning in beginnings}
    plain = {needle for needle in beginnings if json.dumps(needle, ensure_ascii=False) == f'"{needle}"'}
    escapes = {"\\u", "\\/"} if plain == beginnings else {"\\"}
    return {needle.encode() for needle in plain | ends | escapes}


def _edited(name: str, value: Any, edits: Runs[Edit]) -> Any:
    """A field of a body with its strings edited."""
    if name == "messages" and isinstance(value, list):
        return [_message(each, edits) if isinstance(each, dict) else each for each in value]
    return _walk(value, edits.other)


def _message(message: dict[str, Any], edits: Runs[Edit]) -> dict[str, Any]:
    say = edits.answered if message.get("role") == "assistant" else edits.said
    edited = {}
    for name, value in message.items():
        if name == "content":
            edited[name] = _content(value, say, edits.other)
        elif name == "tool_calls" and isinstance(value, list):
            edited[name] = [_call(each, edits.other) for each in value]
        else:
            edited[name] = _walk(value, edits.other)
    return edited


def _content(content: Any, say: Edit, other: Edit) -> Any:
    if isinstance(content, str):
        return say(content)
    if not isinstance(content, list):
        return content
    return [_part(part, say, other) if isinstance(part, dict) else _walk(part, say) for part in content]


def _part(part: dict[str, Any], say: Edit, other: Edit) -> dict[str, Any]:
    return {
        name: say(value) if name in _PART_TEXTS and isinstance(value, str) else _walk(value, other)
        for name, value in part.items()
    }


def _call(call: Any, other: Edit) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return _walk(call, other)
    rest = _walk({**call, "function": {**function, "arguments": None}}, other)
    rest["function"]["arguments"] = _arguments(function["arguments"], other)
    return rest


def _arguments(text: str, other: Edit) -> str:
    """Arguments as the policy reads them before it renders them: decoded, as Python's own reader does it."""
    try:
        decoded = json.loads(text)
    except (ValueError, RecursionError):
        decoded = None
    if not isinstance(decoded, dict):
        return other(text)
    edited = _walk(decoded, other)
    return text if edited == decoded else json.dumps(edited)


def _walk(value: Any, edit: Edit, depth: int = 0) -> Any:
    """A JSON value with every string in it edited, keys too.

    Raises:
        InvalidRequestError: arguments that are nested deeper than any body may be.
    """
    if isinstance(value, str):
        return edit(value)
    if depth > MAX_DEPTH:
        raise InvalidRequestError(f"A text holds JSON that is nested deeper than {MAX_DEPTH} levels.")
    if isinstance(value, dict):
        return {edit(name): _walk(each, edit, depth + 1) for name, each in value.items()}
    if isinstance(value, list):
        return [_walk(each, edit, depth + 1) for each in value]
    return value


def _recorder(runs: Runs[list[str]]) -> Runs[Edit]:
    """Edits that change nothing and collect what they see."""

    def into(texts: list[str]) -> Edit:
        def record(text: str) -> str:
            texts.append(text)
            return text

        return record

    return Runs(into(runs.said), into(runs.answered), into(runs.other))


def _player(runs: Runs[list[str]]) -> Runs[Edit]:
    """Edits that hand out the texts of these runs, one by one."""

    def out_of(texts: list[str]) -> Edit:
        waiting = iter(texts)
        return lambda _: next(waiting)

    return Runs(out_of(runs.said), out_of(runs.answered), out_of(runs.other))
