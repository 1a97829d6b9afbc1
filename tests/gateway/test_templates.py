"""Templates of the operator's: rendered in a sandbox."""

from pathlib import Path

import pytest

from gateway.config import ConfigError
from gateway.errors import InvalidRequestError
from gateway.templates import compile_template, render

HI = [{"role": "user", "content": "{{ 7 * 7 }}"}]


def test_content_is_never_a_template(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(
        "{%- for m in messages %}\n[{{ m['role'] }}] {{ m.content }}\n{%- endfor %}{{ bos_token }}"
    )
    assert render(compile_template(f"@{file}"), HI) == "[user] {{ 7 * 7 }}"


@pytest.mark.parametrize("source", ["{% for %}", "@/nowhere.jinja"])
def test_what_is_no_template_is_said(source: str) -> None:
    with pytest.raises(ConfigError, match="`template`"):
        compile_template(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages[5].content }}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ 1 + messages }}",
    ],
)
def test_what_a_template_cannot_or_may_not_do_refuses_the_conversation(source: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        render(compile_template(source), HI)
    assert "alternate" not in caught.value.message
