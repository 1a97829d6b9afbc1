"""Conversations -> token ids, by the checkpoint's own tokenizer and chat template.

The rule, which the trainers follow too so that scores agree:
- the conversation, whose last turn is the answer that is judged, is rendered by the chat template without a
  generation prompt and tokenised without adding special tokens;
- where a content holds the text of a control token ("<|user|>" typed by somebody), that text must stay text:
  every content is rendered as a sentinel, the rendered text is split at the sentinels, the template's
  pieces are tokenised as usual and the contents with `split_special_tokens`, and the ids are joined.
Nothing is truncated here.

Limits of the second case: a template that trims contents is noticed and obeyed; one that looks into them
otherwise (say, to drop a reasoning part) sees a sentinel.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import jinja2

from rm_server.errors import InvalidRequestError
from rm_server.protocol import Conversation

SENTINEL = "bonsaicontent{:06d}x"
SENTINELS = re.compile(r"bonsaicontent(\d{6})x")


class ChatFormatter:
    """Wraps a transformers tokenizer. Not thread-safe, as tokenizers are not: one thread calls it.

    Contents need a tokenizer of their own, because transformers keeps `split_special_tokens` as state.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._text_tokenizer = copy.deepcopy(tokenizer)
        control_texts = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
        self._control = re.compile(
            "|".join(re.escape(text) for text in sorted(control_texts) if text) or "(?!)"
        )

    def encode(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Token ids of each conversation. Raises InvalidRequestError where the template refuses one."""
        plain: list[Conversation] = []
        encoded: list[list[int] | None] = []
        for conversation in conversations:
            if any(self._control.search(message["content"]) for message in conversation):
                encoded.append(self._encode_contents_as_text(conversation))
            else:
                encoded.append(None)
                plain.append(conversation)
        rest = iter(self.encode_rendered([self._render(conversation) for conversation in plain]))
        return [next(rest) if ids is None else ids for ids in encoded]

    def encode_rendered(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that already are what the model should read: control tokens count."""
        if not texts:
            return []
        ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def _render(self, conversation: Conversation) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(conversation, tokenize=False)
        except jinja2.TemplateError as error:
            # What the template says may quote the conversation, so it is not passed on.
            raise InvalidRequestError(
                "The model's chat template refuses this conversation (the order of its roles, perhaps)",
                code="chat_template_refused",
            ) from error
        return text

    def _encode_contents_as_text(self, conversation: Conversation) -> list[int]:
        contents = [message["content"] for message in conversation]
        sentinels = [SENTINEL.format(i) for i in range(len(contents))]
        rendered = self._render(_with_contents(conversation, sentinels))
        if self._render(_with_contents(conversation, [f" {s}\n" for s in sentinels])) == rendered:
            contents = [content.strip() for content in contents]  # the template trims
        ids: list[int] = []
        for position, piece in enumerate(SENTINELS.split(rendered)):  # template, index, template, index, ...
            if position % 2:
                ids += self._tokenise_text(contents[int(piece)])
            elif piece:
                ids += self.encode_rendered([piece])[0]
        return ids

    def _tokenise_text(self, content: str) -> list[int]:
        ids: list[int] = self._text_tokenizer(content, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids


def _with_contents(conversation: Conversation, contents: Sequence[str]) -> Conversation:
    return [{**message, "content": content} for message, content in zip(conversation, contents, strict=True)]
