"""From conversations to token ids, by the tokenizer's own chat template.

Text that people or models wrote is never read as control tokens. Where no content contains the text of a
special or added token, the rendered template is tokenised as it stands. Where one does, each content is
rendered as a sentinel of plain characters, the result is cut at the sentinels, the template's pieces are
tokenised as usual, the contents (trimmed where the template trims) with their special strings split up, and
the ids are joined. The reward-model server reads conversations by the same rule, so that scores agree.
"""

import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from trainers.errors import ConfigError, DataError
from trainers.formats import Message

SIMPLE = "simple"
SIMPLE_TEMPLATE = (
    "{% if bos_token is defined and bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '\\n\\nAssistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ '\\n\\nSystem: ' + message['content'] }}"
    "{% else %}{{ '\\n\\nHuman: ' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)
"""The built-in template: Anthropic's transcript turns, each answer closed by the end token."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """One conversation (or the first turns of one) to be tokenised."""

    messages: Sequence[Message]
    add_generation_prompt: bool
    where: str


class ChatEncoder:
    """Encodes conversations with one tokenizer; many at once, for fast tokenizers work in parallel."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        control = {str(token) for token in tokenizer.all_special_tokens} | set(tokenizer.get_added_vocab())
        longest_first = sorted(filter(None, control), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._sentinel = f"q{uuid.uuid4().hex}x"
        added = tokenizer.added_tokens_decoder.items()
        self.control_ids = frozenset(tokenizer.all_special_ids) | {
            id_ for id_, token in added if token.special
        }

    def encode(self, renderings: Sequence[Rendering]) -> list[list[int]]:
        """Returns the token ids of each rendering; DataError where the template refuses a conversation."""
        forged = [self._has_control_text(rendering.messages) for rendering in renderings]
        plain = [item for item, is_forged in zip(renderings, forged, strict=True) if not is_forged]
        texts = [self._render(item, item.messages) for item in plain]
        plain_ids = iter(self._tokenize(texts, add_special_tokens=False, split_special_tokens=False))
        return [
            self._encode_split(item) if is_forged else next(plain_ids)
            for item, is_forged in zip(renderings, forged, strict=True)
        ]

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of plain texts, with what the tokenizer itself adds (a begin token, for many)."""
        return self._tokenize(texts, add_special_tokens=True, split_special_tokens=True)

    def _tokenize(self, texts: Sequence[str], **how: bool) -> list[list[int]]:
        return list(self.tokenizer(list(texts), **how)["input_ids"]) if texts else []

    def _has_control_text(self, messages: Sequence[Message]) -> bool:
        return any(self._control.search(message["content"]) for message in messages)

    def _render(self, rendering: Rendering, messages: Sequence[Message]) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=rendering.add_generation_prompt
                )
            )
        except jinja2.TemplateError as error:
            raise DataError(
                f"{rendering.where}: the chat template refuses this conversation: {error}"
            ) from error

    def _encode_split(self, rendering: Rendering) -> list[int]:
        ids: list[int] = []
        for text, is_content in self._parts(rendering):
            if text:
                ids += self._tokenize([text], add_special_tokens=False, split_special_tokens=is_content)[0]
        return ids

    def _parts(self, rendering: Rendering) -> Iterator[tuple[str, bool]]:
        """The rendered text in parts, the template's own (False) and contents (True), in turn.

        What a template trims of a content is seen from sentinels with the same whitespace before, then after.
        """
        contents = [message["content"] for message in rendering.messages]
        leads = [content[: len(content) - len(content.lstrip())] for content in contents]
        trails = [content[len(content.rstrip()) :] for content in contents]
        nothing = [""] * len(contents)
        bare = self._cut(rendering, nothing, nothing)
        led = self._cut(rendering, leads, nothing)
        trailed = self._cut(rendering, nothing, trails)
        yield bare[0], False
        for at in range(1, len(bare), 2):
            content, lead, trail = (texts[int(bare[at])] for texts in (contents, leads, trails))
            start = len(lead) - (len(led[at - 1]) - len(bare[at - 1]))
            end = len(content) - len(trail) + (len(trailed[at + 1]) - len(bare[at + 1]))
            yield content[start:end], True
            yield bare[at + 1], False

    def _cut(self, rendering: Rendering, leads: Sequence[str], trails: Sequence[str]) -> list[str]:
        """Renders each content as a sentinel in this whitespace: template, index, template, index, ..."""
        masked = [
            {**message, "content": f"{lead}{self._sentinel}{index}x{trail}"}
            for index, (message, lead, trail) in enumerate(
                zip(rendering.messages, leads, trails, strict=True)
            )
        ]
        return re.split(f"{self._sentinel}([0-9]+)x", self._render(rendering, masked))


def choose_template(tokenizer: Any, chat_template_path: str | None) -> str | None:
    """The chat template to use: the given file's, the built-in one, or the tokenizer's own if it is a real
    one.

    Returns None where the tokenizer has none, or only a placeholder that renders every role alike.
    """
    if chat_template_path == SIMPLE:
        if not tokenizer.eos_token:
            raise ConfigError("the simple chat template needs a tokenizer with an end token (eos_token)")
        return SIMPLE_TEMPLATE
    if chat_template_path is not None:
        return _read_template(Path(chat_template_path))
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template if template and _tells_roles_apart(tokenizer, template) else None


def _read_template(path: Path) -> str:
    try:
        template = path.read_text(encoding="utf-8")
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat_template_path {path}: cannot be read: {error}") from error
    except jinja2.TemplateError as error:
        raise ConfigError(f"--chat_template_path {path}: no valid template: {error}") from error
    return template


def _tells_roles_apart(tokenizer: Any, template: str) -> bool:
    question = {"role": "user", "content": "hello"}
    try:
        plain, prompted = (
            tokenizer.apply_chat_template(
                [question], chat_template=template, tokenize=False, add_generation_prompt=add
            )
            for add in (False, True)
        )
        answered = tokenizer.apply_chat_template(
            [question, {"role": "assistant", "content": "hello"}], chat_template=template, tokenize=False
        )
    except jinja2.TemplateError:
        return True  # it has rules of its own; the data will be held to them
    return bool(plain != prompted or answered.replace(plain, "", 1).strip() != "hello")
