"""The wire types of rm_server and nothing else: what a request may hold, and what a conversation is once
read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import msgspec

from rm_server.ensemble import Method
from rm_server.errors import InvalidRequestError

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
Conversation: TypeAlias = list[
    dict[str, str]
]  # [{"role": ..., "content": ...}, ...], the last turn is judged


class TextPart(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """A turn: who speaks, and the text, in parts perhaps. Tool calls are for the caller to write into
    the text.
    """

    role: Role
    content: str | list[TextPart]

    def as_turn(self) -> dict[str, str]:
        text = (
            self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        )
        return {"role": self.role, "content": text}


class ScoreRequest(msgspec.Struct, forbid_unknown_fields=True):
    """`messages` with several `responses` to them, or whole `conversations`: one of the two."""

    model: str | None = None
    messages: list[Message] | None = None
    responses: list[str] | None = None
    conversations: list[list[Message]] | None = None
    ensemble: Method | None = None
    objectives: dict[str, float] | None = None
    return_members: bool = False
    length_penalty: Annotated[float, msgspec.Meta(ge=0)] | None = None

    def to_conversations(self) -> list[Conversation]:
        """What is to be judged, in the order of the answer. Raises InvalidRequestError."""
        if self.conversations is not None:
            if self.messages is not None or self.responses is not None:
                raise InvalidRequestError(
                    "Give either conversations or messages with responses", param="conversations"
                )
            return _read_conversations(self.conversations)
        if self.messages is None or self.responses is None:
            missing = "messages" if self.messages is None else "responses"
            raise InvalidRequestError("Give messages and responses, or conversations", param=missing)
        if not self.messages or not self.responses:
            empty = "responses" if self.messages else "messages"
            raise InvalidRequestError(f"{empty} must not be empty", param=empty)
        prompt = [message.as_turn() for message in self.messages]
        return [[*prompt, {"role": "assistant", "content": response}] for response in self.responses]


def _read_conversations(conversations: list[list[Message]]) -> list[Conversation]:
    if not conversations or not all(conversations):
        raise InvalidRequestError("conversations must not be empty, nor any of them", param="conversations")
    return [[message.as_turn() for message in conversation] for conversation in conversations]


class ScoreAnswer(msgspec.Struct, omit_defaults=True):
    """`scores` are normalised rewards in the order of the input; null where the model gave no finite
    number. docs/reward-server.md says what each field means.
    """

    model: str
    version: str
    scores: list[float | None]
    usage: dict[str, int]
    members: Mapping[str, list[float | None]] | None = None
    spread: list[float | None] | None = None
    percentiles: list[float | None] | None = None
    out_of_distribution: list[bool | None] | None = None
