"""The fakes' tokenizer: a token a word, and three around each message, for both servers alike."""

from typing import Any

AROUND_A_MESSAGE = 3


def count_text(text: object) -> int:
    """Tokens of a text."""
    return len(str(text or "").split())


def count_messages(messages: list[Any]) -> int:
    """Tokens of a conversation; what is no message has none."""
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    return sum(AROUND_A_MESSAGE + count_text(content) for content in contents)
