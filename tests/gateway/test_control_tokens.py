"""Which strings are control tokens: vLLM's answer to GET /tokenizer_info, and the expression for them."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.control_tokens import COMMON, MARKS, SHAPES, SHAPES_BEGIN, breakable, pattern, special_tokens

# As vLLM 0.32 answers for a Gemma checkpoint, shortened.
INFO: dict[str, Any] = {
    "add_bos_token": True,
    "added_tokens_decoder": {
        "0": "<pad>",
        "2": "<bos>",
        "7": "<unused0>",
        "105": "<start_of_turn>",
        "108": "\n\n",
        "168": "<table>",
        "169": "</h1>",
        "255999": "<start_of_image>",
        "262144": "plain",
        "262145": "[multimodal]",
    },
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "image_token": "<image_soft_token>",
    "extra_special_tokens": {"boi_token": "<start_of_image>", "other": "<other>"},
    "additional_special_tokens": ["<end_of_turn>"],
    "pad_token": None,
    "chat_template": "{{ '<|in_a_template|>' }}",
    "model_max_length": 8192,
    "tokenizer_class": "GemmaTokenizer",
}


def test_the_special_tokens_of_an_answer_without_html_and_plain_text() -> None:
    named = {"<bos>", "<eos>", "<image_soft_token>", "<start_of_image>", "<other>", "<end_of_turn>"}
    added = {"<pad>", "<bos>", "<unused0>", "<start_of_turn>", "<start_of_image>", "[multimodal]"}
    assert special_tokens(INFO) == named | added


@pytest.mark.parametrize("info", [{}, {"bos_token": 5, "added_tokens_decoder": [], "x_tokens": True}])
def test_an_answer_without_tokens_has_none(info: dict[str, Any]) -> None:
    assert special_tokens(info) == frozenset()


def test_only_what_can_be_told_from_text_is_broken() -> None:
    assert breakable(["<s>", "!", "", " ", "\n\n", "word", "a\\b", "##", "_a"]) == {"<s>", "##", "_a"}
    assert breakable(COMMON) == COMMON
    assert MARKS <= COMMON


@given(st.lists(st.text("ab<|>", min_size=1, max_size=6), max_size=12), st.text("ab<|>", max_size=30))
def test_the_expression_finds_each_place_where_a_word_begins(words: list[str], text: str) -> None:
    shape = re.compile("|".join(f"{re.escape(first)}{rest}" for first, rest in SHAPES.items()))
    expected = [
        place
        for place in range(len(text))
        if text.startswith(tuple(words), place) or shape.match(text, place)
    ]
    assert [match.start() for match in re.finditer(pattern(words), text)] == expected


def test_the_shapes_begin_as_they_are_said_to() -> None:
    for text in ("<|a|>", "<｜a｜>", "＜|a|＞", "＜｜a｜＞", "[|a|]", "<|a>"):
        assert re.match(pattern([]), text)
        assert text.startswith(SHAPES_BEGIN)


@pytest.mark.slow
def test_vllms_own_answer_is_understood() -> None:
    """The very class that answers there, for a tokenizer of the small world's kind."""
    from vllm.entrypoints.serve.tokenize.protocol import TokenizerInfoResponse
    from vllm.entrypoints.serve.tokenize.serving import TokenizerInfo

    from trainers.tiny.tokenizer import CONTROL, train_tokenizer

    tokenizer = train_tokenizer(["a b c"] * 9, 300, 512)
    answer = TokenizerInfoResponse(**TokenizerInfo(tokenizer, None).to_dict()).model_dump(mode="json")
    assert special_tokens(answer) == set(CONTROL)
    assert answer["eos_token"] == "<|end|>"
