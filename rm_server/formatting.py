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

Answers to one prompt are not tokenised apart from it for the prompt to be computed once: rows are compared
token by token later. Each says where the answer seems to start, for the cache of prompts.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2

from rm_server.errors import InvalidRequestError
from rm_server.packing import TextIds
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
        rest = iter(self._encode_plain(plain))
        return [next(rest) if ids is None else ids for ids in encoded]

    def encode_rendered(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that already are what the model should read: control tokens count."""
        if not texts:
            return []
        ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def encode_contents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of what people wrote, by itself: control tokens are text."""
        return [self._tokenise_text(text) for text in texts]

    def _encode_plain(self, conversations: Sequence[Conversation]) -> list[TextIds]:
        if not conversations:
            return []
        texts = [self._render(conversation) for conversation in conversations]
        encoding = self._tokenizer(texts, add_special_tokens=False)
        encoded = [TextIds(ids) for ids in encoding["input_ids"]]
        for index, (ids, conversation) in enumerate(zip(encoded, conversations, strict=True)):
            judged = texts[index].rfind(conversation[-1]["content"].strip())
            if judged >= 0 and encoding.is_fast:
                ids.prompt_length = encoding.char_to_token(index, judged) or 0
        return encoded

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

    def _encode_contents_as_text(self, conversation: Conversation) -> TextIds:
        ids = TextIds()
        for text, is_content in self._parts(conversation):
            if is_content:
                ids.prompt_length = len(ids)  # in the end, what comes before the last content
            if text:
                ids += self._tokenise_text(text) if is_content else self.encode_rendered([text])[0]
        return ids

    def _parts(self, conversation: Conversation) -> Iterator[tuple[str, bool]]:
        """The rendered text in parts, the template's own (False) and contents (True), in turn.

        What a template trims of a content is seen from sentinels with the same whitespace before, then after.
        """
        contents = [message["content"] for message in conversation]
        leads = [content[: len(content) - len(content.lstrip())] for content in contents]
        trails = [content[len(content.rstrip()) :] for content in contents]
        nothing = [""] * len(contents)
        bare = self._cut(conversation, nothing, nothing)
        led = self._cut(conversation, leads, nothing)
        trailed = self._cut(conversation, nothing, trails)
        yield bare[0], False
        for at in range(1, len(bare), 2):
            content, lead, trail = (texts[int(bare[at])] for texts in (contents, leads, trails))
            start = len(lead) - (len(led[at - 1]) - len(bare[at - 1]))
            end = len(content) - len(trail) + (len(trailed[at + 1]) - len(bare[at + 1]))
            yield content[start:end], True
            yield bare[at + 1], False

    def _cut(self, conversation: Conversation, leads: Sequence[str], trails: Sequence[str]) -> list[str]:
        """Renders each content as a sentinel in this whitespace: template, index, template, index, ..."""
        masked = [
            {**message, "content": f"{lead}{SENTINEL.format(index)}{trail}"}
            for index, (message, lead, trail) in enumerate(zip(conversation, leads, trails, strict=True))
        ]
        return SENTINELS.split(self._render(masked))

    def _tokenise_text(self, content: str) -> list[int]:
        ids: list[int] = self._text_tokenizer(content, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids
