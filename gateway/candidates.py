"""One sample, put together from the pieces of a stream, and what of it is judged.

The pieces are kept as they came, so that a winner can be streamed again with its log-probabilities and tool
calls in place; the whole message is folded from them once.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gateway.errors import InvalidRequestError
from gateway.policy import ChoiceDelta
from gateway.strict_json import parse_object

FINISHED = frozenset({"stop", "length", "tool_calls", "function_call", "content_filter", "repetition"})
_TEXTS = ("content", "reasoning", "reasoning_content", "refusal")


@dataclass
class Candidate:
    """The sample `index` (0-based) of one prompt."""

    index: int
    deltas: list[ChoiceDelta] = field(default_factory=list)
    completion_tokens: int | None = None
    """As the policy counted them so far; None where it does not count per candidate."""
    lost_tokens: int = 0
    """Of what was received before its server was lost."""
    finish_reason: str | None = None
    reward: float | None = None
    out_of_distribution: bool | float | None = None
    spread: float | None = None
    """How far the members of an ensemble are apart on it, where the reward server says so."""
    too_long: bool = False
    """Longer than the reward model can read."""

    @property
    def finished(self) -> bool:
        """Whether it came to a proper end; an aborted one did not."""
        return self.finish_reason in FINISHED

    def add(self, piece: ChoiceDelta) -> None:
        """Take the next piece."""
        self.deltas.append(piece)
        if piece.finish_reason is not None:
            self.finish_reason = piece.finish_reason

    def begin_again(self) -> None:
        """Forget what came: its server was lost, and another samples it anew."""
        self.deltas.clear()
        self.lost_tokens += self.completion_tokens or 0
        self.completion_tokens = None

    @cached_property
    def message(self) -> dict[str, Any]:
        """The assistant's message of a finished chat candidate."""
        return fold_message([piece.delta or {} for piece in self.deltas])

    @cached_property
    def text(self) -> str:
        """The text of a finished completion candidate."""
        return "".join(piece.text or "" for piece in self.deltas)

    @property
    def logprobs(self) -> dict[str, Any] | None:
        """Its log-probabilities, in the shape of its endpoint."""
        return fold_logprobs([piece.logprobs for piece in self.deltas])

    @property
    def token_ids(self) -> list[int] | None:
        """Its token ids, where they were asked for."""
        pieces = [piece.token_ids for piece in self.deltas if piece.token_ids is not None]
        return [token for piece in pieces for token in piece] if pieces else None

    @property
    def stop_reason(self) -> int | str | None:
        """vLLM's: the stop text or token id that ended it."""
        return self.deltas[-1].stop_reason if self.deltas else None


def fold_message(deltas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A chat message from its deltas: texts joined, tool calls assembled by their index."""
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    for name in _TEXTS:
        pieces = [delta[name] for delta in deltas if isinstance(delta.get(name), str)]
        if pieces:
            message[name] = "".join(pieces)
    tool_calls = fold_tool_calls([call for delta in deltas for call in delta.get("tool_calls") or ()])
    if tool_calls:
        message["tool_calls"] = tool_calls
        message["content"] = message["content"] or None
    elif message["content"] is None and message["refusal"] is None:
        message["content"] = ""
    return message


def fold_tool_calls(pieces: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Whole tool calls from streamed pieces: the first piece of an index names it, the rest add to its
    arguments."""
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        call = calls.setdefault(
            piece.get("index", 0), {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = piece.get("id") or call["id"]
        call["type"] = piece.get("type") or call["type"]
        function = piece.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""
    return [calls[index] for index in sorted(calls)]


def fold_logprobs(pieces: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Log-probabilities of the pieces, list by list; None where no piece had any."""
    folded: dict[str, Any] = {}
    for piece in pieces:
        for name, values in (piece or {}).items():
            if not isinstance(values, list):
                folded.setdefault(name, values)
            elif isinstance(folded.get(name), list):
                folded[name].extend(values)
            else:
                folded[name] = list(values)
    return folded or None


def judged_text(text: str | None, tool_calls: Sequence[Mapping[str, Any]] | None) -> str:
    """What a reward model reads of an assistant's turn: the text, then its tool calls as canonical JSON.

    Canonical: keys sorted, no spaces, arguments as JSON where they are a strict JSON object, else as they
    stand. Reasoning is not judged.
    """
    if not tool_calls:
        return text or ""
    calls = [_canonical(call.get("function") or {}) for call in tool_calls]
    written = json.dumps(calls, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"{text}\n{written}" if text else written


def judged_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A conversation as role and text: parts joined by line breaks, tool calls as in `judged_text`."""
    return [
        {
            "role": message["role"],
            "content": judged_text(
                _flat(message.get("content")) or message.get("refusal"), message.get("tool_calls")
            ),
        }
        for message in messages
    ]


def _flat(content: Any) -> str:
    if isinstance(content, list):
        texts = [part.get("text", part.get("refusal")) for part in content]
        return "\n".join(text for text in texts if text is not None)
    return content or ""


def _canonical(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function.get("arguments") or ""
    with suppress(
        InvalidRequestError
    ):  # models and clients write what they like: half a call, a million brackets
        arguments = parse_object(arguments.encode()) if isinstance(arguments, str) else arguments
    return {"name": function.get("name"), "arguments": arguments}
