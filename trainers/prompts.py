"""Prompts: from rows with a `prompt` (or `messages` that end before the assistant's turn) to token ids."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainers.chat import ChatEncoder, Rendering
from trainers.errors import ConfigError, DataError
from trainers.formats import Demonstration, Message, Row, messages_of, prompt_of


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the policy sees it. Plain text (a tokenizer without chat template) is one user turn with
    `is_text` set.
    """

    messages: list[Message]
    is_text: bool
    ids: list[int]
    where: str

    @property
    def content(self) -> str | list[Message]:
        """As rows hold it: a text, or messages."""
        return self.messages[0]["content"] if self.is_text else self.messages

    def answered(self, text: str) -> Demonstration:
        """The conversation with an answer."""
        messages = [*self.messages, {"role": "assistant", "content": text}]
        return Demonstration(messages, len(self.messages), self.is_text, self.where)


def encode_prompts(rows: Sequence[tuple[Row, str]], encoder: ChatEncoder) -> list[Prompt]:
    """The prompts of the rows, in order."""
    read = [_read(row, where) for row, where in rows]
    has_template = bool(encoder.tokenizer.chat_template)
    if has_template:
        ids = encoder.encode(
            [Rendering(messages, True, where) for (messages, _), (_, where) in zip(read, rows, strict=True)]
        )
    elif all(is_text for _, is_text in read):
        ids = encoder.encode_plain([messages[0]["content"] for messages, _ in read])
    else:
        raise ConfigError("the tokenizer has no chat template that tells roles apart: --chat_template_path")
    return [
        Prompt(messages, is_text and not has_template, prompt_ids, where)
        for (messages, is_text), prompt_ids, (_, where) in zip(read, ids, rows, strict=True)
    ]


def check_room(prompts: Sequence[Prompt], context_length: int) -> None:
    """Raises DataError for a prompt that leaves no room for an answer."""
    for prompt in prompts:
        if len(prompt.ids) >= context_length:
            raise DataError(
                f"{prompt.where}: the prompt fills the model's context of {context_length} tokens"
            )


def _read(row: Row, where: str) -> tuple[list[Message], bool]:
    if "prompt" in row or "messages" not in row:
        messages, is_text = prompt_of(row, where)
    else:
        messages, is_text = messages_of(row["messages"], "messages", where), False
    if messages[-1]["role"] == "assistant":
        raise DataError(f"{where}: the prompt ends with an assistant turn: there is nothing to answer")
    return messages, is_text
