"""The request forms of other reward servers, so that their clients can point here: raw logits, as those give.

- `POST /pooling`, `POST /classify`: vLLM's. `input` holds texts that are rendered already, or token ids;
  `messages` one conversation.
- `POST /get_reward`: OpenRLHF's. `query` holds rendered texts.

Rendered text is tokenised as rendered: control tokens count, nothing is added. Fields of these servers
that would change the numbers are refused unless they hold what happens here anyway; other fields are
ignored, as there.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import msgspec

from rm_server.errors import InvalidRequestError
from rm_server.protocol import Conversation, Message

Rendered: TypeAlias = str | list[str | list[int] | int]


class PoolingRequest(msgspec.Struct):
    """vLLM's PoolingRequest and ClassificationRequest."""

    model: str | None = None
    input: Rendered | None = None
    messages: list[Message] | None = None
    use_activation: bool | None = None
    activation: bool | None = None
    softmax: bool | None = None
    task: str | None = None
    dimensions: int | None = None
    encoding_format: str | None = None
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    HERE: ClassVar[dict[str, Any]] = {
        "encoding_format": "float",
        "task": "classify",
        "chat_template_kwargs": {},
    }
    """What the fields that change numbers may hold besides false and null."""

    def check(self) -> None:
        """Refuses what would need other numbers than ours. Raises InvalidRequestError."""
        for name in self.__struct_fields__[3:]:
            value = getattr(self, name)
            if value not in (None, False, self.HERE.get(name)):
                raise InvalidRequestError(f"This server does not do this: {name}", param=name)
        if (self.input is None) == (self.messages is None):
            raise InvalidRequestError("Give either input or messages", param="input")

    def conversation(self) -> Conversation | None:
        """The conversation, where one is given."""
        if self.messages is None:
            return None
        if not self.messages:
            raise InvalidRequestError("messages must not be empty", param="messages")
        return [message.as_turn() for message in self.messages]


class GetRewardRequest(msgspec.Struct):
    """OpenRLHF's request; it also sends prompts and labels, which its own server ignores too."""

    query: str | list[str]


def split_rendered(rendered: Rendered) -> tuple[list[str], list[list[int]]]:
    """Texts or token ids: one of the two lists is empty. Raises InvalidRequestError on a mixture."""
    items: list[Any] = [rendered] if isinstance(rendered, str) else rendered
    kinds = {type(item) for item in items}
    if kinds == {str}:
        return items, []
    if kinds == {list}:
        return [], items
    if kinds == {int}:
        return [], [items]
    raise InvalidRequestError("input must hold texts, or token ids, and not nothing", param="input")


def pooling_answer(model: str, logits: list[list[float | None]], tokens: int) -> dict[str, Any]:
    """vLLM's PoolingResponse."""
    data = [{"index": i, "object": "pooling", "data": row} for i, row in enumerate(logits)]
    return _listed("pool", model, data, tokens)


def classify_answer(
    model: str, labels: Sequence[str], logits: list[list[float | None]], tokens: int
) -> dict[str, Any]:
    """vLLM's ClassificationResponse; `probs` holds raw logits."""
    data = [
        {"index": i, "label": labels[_best(row)], "probs": row, "num_classes": len(row)}
        for i, row in enumerate(logits)
    ]
    return _listed("classify", model, data, tokens)


def get_reward_answer(rewards: list[float | None]) -> dict[str, Any]:
    """OpenRLHF's answer: `scores` repeats the rewards, as its server does."""
    return {"rewards": rewards, "scores": rewards, "extra_logs": {}}


def _best(row: list[float | None]) -> int:
    values = [float("-inf") if value is None else value for value in row]
    return values.index(max(values))


def _listed(kind: str, model: str, data: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }
