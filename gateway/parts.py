"""The messages that go upstream: built from what a text conversation needs, and nothing else.

vLLM takes a part for an image, and fetches its URL, if it has an `image_url` beside `"type": "text"` and a
`uuid`; and it hands unknown keys of text parts to chat templates, some of which take `image` for one. So a
text part goes up as its type and its text, and a message as the fields that a policy reads.
"""

from typing import Any

from gateway.errors import InvalidRequestError

MESSAGE_FIELDS = frozenset(
    {"content", "name", "reasoning", "reasoning_content", "refusal", "role", "tool_call_id", "tool_calls"}
)
"""Other fields of a message stay here: clients send back whole answers, with whatever these carry."""
TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
"""The types of parts that are text, and where it stands."""


def text_only(messages: Any) -> Any:
    """The messages for upstream, where the operator does not allow media.

    What is no list of objects passes as it is: the policy refuses it.

    Raises:
        InvalidRequestError: a part that is no text, or a deprecated or foreign way to say what was called.
    """
    if not isinstance(messages, list):
        return messages
    return [
        _message(message, f"messages[{position}]") if isinstance(message, dict) else message
        for position, message in enumerate(messages)
    ]


def refuse_lost(message: dict[str, Any], param: str) -> None:
    """Refuse what would be lost in silence: the policy would see a conversation with a hole.

    Raises:
        InvalidRequestError: naming the field.
    """
    if message.get("function_call") is not None:
        raise InvalidRequestError(
            "`function_call` is no longer supported: use `tool_calls`.",
            param=f"{param}.function_call",
            code="unsupported",
        )
    calls = message.get("tool_calls")
    for position, call in enumerate(calls if isinstance(calls, list) else ()):
        if isinstance(call, dict) and call.get("type", "function") != "function":
            raise InvalidRequestError(
                "Only tool calls of type `function` can be served here.",
                param=f"{param}.tool_calls[{position}].type",
                code="unsupported",
            )


def media_refused() -> InvalidRequestError:
    """The answer to a message with images, audio, video or files."""
    return InvalidRequestError(
        "Message parts with media are not open to clients here, only text."
        " The operator can allow them with --allow-field media.",
        param="media",
        code="field_not_allowed",
    )


def _message(message: dict[str, Any], param: str) -> dict[str, Any]:
    refuse_lost(message, param)
    if message.get("audio") is not None:
        raise media_refused()
    content = message.get("content")
    if not message.keys() <= MESSAGE_FIELDS:
        message = {name: value for name, value in message.items() if name in MESSAGE_FIELDS}
    if isinstance(content, list):
        message = {
            **message,
            "content": [_part(part, f"{param}.content[{i}]") for i, part in enumerate(content)],
        }
    return message


def _part(part: Any, param: str) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    key = TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if kind is None or key is None:
        raise media_refused()
    if not isinstance(part.get(key), str):
        raise InvalidRequestError(f"`{param}.{key}` must be a text.", param=f"{param}.{key}")
    return {"type": kind, key: part[key]}
