"""Which tokens are learned: assistant turns with their end-of-turn token, and nothing else."""

from typing import Any

import pytest

from tests.trainers.conftest import make_tokenizer
from trainers.chat import ChatEncoder
from trainers.data import Tokens
from trainers.encoding import (
    tokenize_conversations,
    tokenize_demonstrations,
    tokenize_pairs,
    tokenize_reward_pairs,
)
from trainers.errors import ConfigError, DataError
from trainers.formats import Demonstration, Message, Pair

END = 1


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


CONVERSATION = [
    message("user", "a"),
    message("assistant", "bc"),
    message("user", "d"),
    message("assistant", "e"),
]


def encode(
    messages: list[Message], learn_from: int = 0, is_text: bool = False, tokenizer: Any = None
) -> Tokens:
    encoder = ChatEncoder(tokenizer or make_tokenizer())
    return tokenize_demonstrations([Demonstration(messages, learn_from, is_text, "f, line 1")], encoder)[0]


def learned(tokens: Tokens) -> str:
    text: str = make_tokenizer().decode([tokens.ids[at] for at in tokens.targets])
    return text


def test_every_assistant_turn_with_its_end_token_is_learned() -> None:
    tokens = encode(CONVERSATION)
    assert learned(tokens) == "bc<|end|>e<|end|>"
    assert tokens.targets[-1] == len(tokens.ids) - 1
    assert make_tokenizer().decode(tokens.ids) == (
        "<|user|>a<|end|>\n<|assistant|>bc<|end|>\n<|user|>d<|end|>\n<|assistant|>e<|end|>"
    )


def test_of_prompt_and_completion_only_the_completion_is_learned() -> None:
    assert learned(encode(CONVERSATION, learn_from=2)) == "e<|end|>"


def test_a_conversation_that_ends_with_a_question_is_cut_after_the_last_answer() -> None:
    tokens = encode(CONVERSATION[:3])
    assert learned(tokens) == "bc<|end|>"
    assert make_tokenizer().decode(tokens.ids).endswith("bc<|end|>")


def test_an_end_token_written_into_an_answer_does_not_end_it() -> None:
    tokens = encode([message("user", "a"), message("assistant", "b<|end|>c")])
    assert learned(tokens) == "b<|end|>c<|end|>"
    assert [tokens.ids[at] for at in tokens.targets].count(END) == 1


def test_the_prompt_is_what_a_server_renders() -> None:
    tokenizer = make_tokenizer()
    tokens = encode(CONVERSATION)
    served = tokenizer.apply_chat_template(CONVERSATION[:1], add_generation_prompt=True)["input_ids"]
    assert tokens.ids[: tokens.targets[0]] == served


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' }}"
        "{% if loop.last %}{{ m.content }}{% else %}-{% endif %}{{ '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    with pytest.raises(DataError, match="f, line 1: with this chat template the tokens of the prompt"):
        encode(CONVERSATION, tokenizer=tokenizer)


def test_a_template_without_an_end_token_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(ConfigError, match="never learn to stop"):
        encode(CONVERSATION[:2], tokenizer=tokenizer)


def test_plain_text_is_joined_and_closed_where_there_is_no_template() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    rows = [message("user", "1 + 1 ="), message("assistant", " 2")]
    tokens = encode(rows, 1, is_text=True, tokenizer=tokenizer)
    assert make_tokenizer().decode(tokens.ids) == "1 + 1 = 2<|end|>"
    assert learned(tokens) == " 2<|end|>"


def test_conversations_need_a_template() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="--chat_template_path simple"):
        encode(CONVERSATION, tokenizer=tokenizer)


def test_plain_text_goes_through_the_template_where_there_is_one() -> None:
    tokens = encode(CONVERSATION[:2], 1, is_text=True)
    assert tokens == encode(CONVERSATION[:2], 1)


PAIR = Pair(CONVERSATION[:1], CONVERSATION[1:2], [message("assistant", "zzz")], False, 0.25, "f, line 1")


def test_pairs_for_a_policy_learn_each_side() -> None:
    (tokens,) = tokenize_pairs([PAIR], ChatEncoder(make_tokenizer()))
    assert (learned(tokens.chosen), learned(tokens.rejected)) == ("bc<|end|>", "zzz<|end|>")
    assert (tokens.margin, tokens.index, len(tokens)) == (0.25, 0, len(tokens.rejected.ids))


def test_pairs_for_a_reward_model_are_whole_conversations() -> None:
    encoder = ChatEncoder(make_tokenizer())
    (tokens,) = tokenize_reward_pairs([PAIR], encoder)
    whole = make_tokenizer().apply_chat_template(CONVERSATION[:2])["input_ids"]
    assert tokens.chosen == Tokens(whole, [])
    (same,) = tokenize_conversations([Demonstration(CONVERSATION[:2], 0, False, "")], encoder)
    assert same == tokens.chosen
