"""docs/fields.md says what becomes of each field: held against the code, the openai package and vLLM."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams

from gateway.fields import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    ENGINE_FIELDS,
    GONE_FIELDS,
    NO_EFFECT_FIELDS,
    OWN_FIELDS,
)
from gateway.parts import MESSAGE_FIELDS, TEXT_PARTS

TEXT = (Path(__file__).parents[2] / "docs" / "fields.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE))
OPENAI = {"Chat": ChatParams, "Completions": CompletionParams}
FORWARDED = {"Chat": CHAT_FIELDS, "Completions": COMPLETION_FIELDS}
VLLM = {
    "Chat": ("chat_completion", "ChatCompletionRequest"),
    "Completions": ("completion", "CompletionRequest"),
}
GATEWAY = {"alignment", "best_of"}
endpoints = pytest.mark.parametrize("endpoint", ["Chat", "Completions"])


def rows(section: str) -> dict[str, str]:
    """Field -> what becomes of it, of one table."""
    return dict(re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", SECTIONS[section], re.MULTILINE))


def openai_fields(endpoint: str) -> set[str]:
    """As the installed package types them; `stream` stands in its subclasses."""
    return {*OPENAI[endpoint].__annotations__, "stream"}


def vllm_fields(endpoint: str) -> set[str]:
    """As vLLM's source declares them; importing it would take half a minute."""
    folder, name = VLLM[endpoint]
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "entrypoints" / "openai" / folder / "protocol.py"
    [model] = [
        node
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    targets = [node.target for node in model.body if isinstance(node, ast.AnnAssign)]
    return {target.id for target in targets if isinstance(target, ast.Name) and target.id[0] != "_"}


def in_code(endpoint: str, name: str) -> str:
    """What the code does with a field, in the page's words."""
    lists = {
        "honoured": OWN_FIELDS,
        "forwarded": FORWARDED[endpoint],
        "accepted": NO_EFFECT_FIELDS,
        "refused unless allowed": ENGINE_FIELDS,
        "refused": GONE_FIELDS.keys(),
    }
    [word] = [word for word, names in lists.items() if name in names]
    return word


@endpoints
def test_every_field_of_the_openai_package_is_there_and_no_other(endpoint: str) -> None:
    assert rows(f"{endpoint}: OpenAI's fields").keys() == openai_fields(endpoint)


@endpoints
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: its fields cannot be read")
def test_every_field_of_vllm_is_there_and_no_other(endpoint: str) -> None:
    documented = rows(f"{endpoint}: the gateway's and vLLM's fields").keys() | openai_fields(endpoint)
    assert documented == vllm_fields(endpoint) | openai_fields(endpoint) | GATEWAY


@endpoints
def test_the_code_does_what_the_page_says(endpoint: str) -> None:
    tables = [f"{endpoint}: OpenAI's fields", f"{endpoint}: the gateway's and vLLM's fields"]
    documented = {name: word for table in tables for name, word in rows(table).items()}
    assert documented == {name: in_code(endpoint, name) for name in documented}
    assert FORWARDED[endpoint] <= documented.keys()


def test_the_fields_that_are_gone_are_named_with_what_to_use() -> None:
    assert rows("Fields that are gone") == dict.fromkeys(GONE_FIELDS, "refused")
    for name, use in GONE_FIELDS.items():
        assert f"| `{name}` | refused | 400: use `{use}` |" in SECTIONS["Fields that are gone"]


def test_every_engine_field_is_named() -> None:
    everywhere = {name for section in SECTIONS for name in rows(section)}
    assert everywhere >= ENGINE_FIELDS - {"media"}
    assert "`media`" in SECTIONS["Messages"]


@pytest.mark.parametrize("word", sorted({*MESSAGE_FIELDS, *TEXT_PARTS}))
def test_what_goes_up_of_a_message_is_named(word: str) -> None:
    assert f"`{word}`" in SECTIONS["Messages"]
