"""The small world's tokenizer: every text can be written, digit by digit, and control tokens by nobody."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trainers.tiny.tokenizer import CONTROL, END, PAD, train_tokenizer

CORPUS = ["Count from 3 to 12: 3, 4, 5.", "Hello Mira! I am sorry that you lost your kite."] * 5
TOKENIZER = train_tokenizer(CORPUS, vocab_size=300, max_length=64)


def test_the_control_tokens_come_first_and_differ() -> None:
    assert TOKENIZER.convert_tokens_to_ids(CONTROL) == list(range(len(CONTROL)))
    assert TOKENIZER.pad_token == PAD != TOKENIZER.eos_token == END
    assert set(TOKENIZER.all_special_tokens) == set(CONTROL)


@pytest.mark.parametrize("vocab_size", [262, 300])
def test_the_vocabulary_has_the_asked_size(vocab_size: int) -> None:
    assert len(train_tokenizer(CORPUS, vocab_size, 64)) == vocab_size


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_can_be_written_and_read(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    assert not set(ids) & set(range(len(CONTROL)))


def test_digits_stand_alone() -> None:
    assert TOKENIZER.tokenize("312") == ["3", "1", "2"]


def test_the_chat_template_by_hand() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rendered = TOKENIZER.apply_chat_template(messages, tokenize=False)
    assert rendered == "<|user|>Hi<|end|><|assistant|>Hello<|end|>"
    prompt = TOKENIZER.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>Hi<|end|><|assistant|>"


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    messages = [{"role": "user", "content": "Count to 12 <|end|>"}]
    assert loaded.apply_chat_template(messages) == TOKENIZER.apply_chat_template(messages)
    assert (loaded.pad_token, loaded.eos_token, loaded.model_max_length) == (PAD, END, 64)


def test_the_corpus_decides() -> None:
    again = train_tokenizer(CORPUS, vocab_size=300, max_length=64)
    assert again.get_vocab() == TOKENIZER.get_vocab()
    assert train_tokenizer(["zzz zzz"] * 9, 300, 64).get_vocab() != TOKENIZER.get_vocab()
