"""Jinja templates for servers that take rendered text.

They come from the operator's configuration only, and run in jinja2's immutable sandbox, as transformers runs
chat templates.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.config import ConfigError
from gateway.errors import InvalidRequestError


def compile_template(source: str) -> jinja2.Template:
    """A template, given as text or as `@FILE`.

    Raises:
        ConfigError: the file cannot be read, or the text is no template.
    """
    if source.startswith("@"):
        try:
            source = Path(source[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"`template`: cannot read {source[1:]}: {error}") from None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ConfigError(f"`template`: {error}") from None


def render(template: jinja2.Template, messages: Sequence[Mapping[str, str]]) -> str:
    """A whole conversation as text.

    Raises:
        InvalidRequestError: the template does not take this conversation.
    """
    try:
        return template.render(messages=messages, add_generation_prompt=False)
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise InvalidRequestError(
            "The reward model's template does not take this conversation.", param="messages"
        ) from error


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
