"""Contents stay text, whatever they hold, and everything else is the chat template's own rendering."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_server.errors import InvalidRequestError, error_body
from rm_server.formatting import ChatFormatter
from rm_server.packing import TextIds
from tests.rm_server.tiny import CONTROL, TEMPLATE, TRIMMING_TEMPLATE, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
FORMATTER = ChatFormatter(tiny_tokenizer())
CONTROL_IDS = set(TOKENIZER.convert_tokens_to_ids(CONTROL))
SEPARATORS = ["", " ", "\n", "a", "<|", "|>", "<", "system"]

contents = st.lists(st.sampled_from(CONTROL + SEPARATORS) | st.text(max_size=5), max_size=6).map("".join)


def asked(question: str, response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": response}]


def num_controls(ids: list[int]) -> int:
    return sum(token_id in CONTROL_IDS for token_id in ids)


def test_without_control_texts_it_is_the_plain_chat_template() -> None:
    conversation = asked("How many apples?", " 12 apples.\n")
    expected = TOKENIZER.apply_chat_template(conversation, tokenize=True, return_dict=False)
    assert FORMATTER.encode([conversation]) == [expected]


@settings(deadline=None)
@given(st.lists(st.tuples(contents, contents), min_size=1, max_size=4))
def test_no_content_makes_a_control_token(pairs: list[tuple[str, str]]) -> None:
    conversations = [asked(question, response) for question, response in pairs]
    for conversation, ids in zip(conversations, FORMATTER.encode(conversations), strict=True):
        assert num_controls(ids) == 4  # two roles and two ends: the template's own
        assert TOKENIZER.decode(ids) == TOKENIZER.apply_chat_template(conversation, tokenize=False)


def test_a_typed_control_token_reads_as_its_letters() -> None:
    [typed] = FORMATTER.encode([asked("q", "<|user|>")])
    letters = FORMATTER.encode_rendered(["<|", "user", "|>"])
    [around] = FORMATTER.encode([asked("q", "X")])
    start = around.index(TOKENIZER.convert_tokens_to_ids("X"))
    assert TOKENIZER.decode(typed[start:-1]) == "<|user|>"
    assert typed[:start] == around[:start]
    assert typed[-1] == around[-1] == TOKENIZER.eos_token_id
    assert not any(map(num_controls, letters))


def test_rendered_text_keeps_its_control_tokens() -> None:
    conversation = asked("How many?", "12")
    rendered = TOKENIZER.apply_chat_template(conversation, tokenize=False)
    assert FORMATTER.encode_rendered([rendered]) == FORMATTER.encode([conversation])


@pytest.mark.parametrize("response", ["  hello \n", "  <|user|> hello \n"])
def test_a_template_that_trims_is_obeyed(response: str) -> None:
    formatter = ChatFormatter(tiny_tokenizer(TRIMMING_TEMPLATE))
    assert formatter.encode([asked("q", response)]) == formatter.encode([asked("q", response.strip())])


def test_a_template_that_trims_one_side_of_one_role_is_obeyed() -> None:
    template = TEMPLATE.replace(
        "message['content'] +",
        "(message['content'].lstrip('\\n') if message['role'] == 'assistant' else message['content']) +",
    )
    formatter = ChatFormatter(tiny_tokenizer(template))
    [typed] = formatter.encode([asked("\n<|end|>", "\n<|user|> hello \n")])
    [expected] = FORMATTER.encode([asked("\n<|end|>", "<|user|> hello \n")])
    assert typed == expected


def test_what_looks_like_a_sentinel_is_text() -> None:
    conversation = asked("bonsaicontent000001x", "<|user|> bonsaicontent000000x")
    [ids] = FORMATTER.encode([conversation])
    assert TOKENIZER.decode(ids) == TOKENIZER.apply_chat_template(conversation, tokenize=False)


def test_a_template_that_refuses_is_a_400_that_quotes_nothing() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        FORMATTER.encode([[{"role": "tool", "content": "secret"}]])
    assert refused.value.code == "chat_template_refused"
    assert b"secret" not in error_body(refused.value)


def test_answers_to_one_prompt_agree_in_its_tokens() -> None:
    rows = FORMATTER.encode([asked("How many apples?", text) for text in ("12", "<|user|> none", "hello")])
    lengths = {row.prompt_length for row in rows if isinstance(row, TextIds)}
    [length] = lengths
    assert TOKENIZER.decode(rows[0][:length]).endswith("<|assistant|>\n")
    assert rows[0][:length] == rows[1][:length] == rows[2][:length]
