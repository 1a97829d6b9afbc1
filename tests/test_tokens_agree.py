"""The trainers and the reward-model server read a conversation as the same tokens, or scores would not agree.

The two packages share no code; what they share is this rule, and here it is held: for every tokenizer, chat
template and conversation, however odd.
"""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rm_server.formatting import ChatFormatter
from tests.rm_server.tiny import TEMPLATE, TRIMMING_TEMPLATE, tiny_tokenizer
from tests.trainers.conftest import make_tokenizer
from trainers.chat import SIMPLE_TEMPLATE, ChatEncoder, Rendering
from trainers.tiny.tokenizer import train_tokenizer

STORIES = Path(__file__).parents[2] / "shared" / "data" / "models" / "stories260K"
CORPUS = ["Hello, I lost my kite.", "Count from 3 to 12.", "First get soap, then wash the boat."]
Conversation = list[dict[str, str]]
CONTROL = ["<|end|>", "<|user|>", "<|assistant|>", "<|pad|>", "<s>", "</s>"]


def trims(how: str, role: str = "assistant") -> str:
    """A template that trims the contents of one role alone, and in its own way."""
    trimmed = f"(message['content']{how} if message['role'] == '{role}' else message['content'])"
    return TEMPLATE.replace("message['content'] + '<|end|>'", f"{trimmed} + '<|end|>'")


DROP_SYSTEM = "{%- if messages[0]['role'] == 'system' -%}{%- set messages = messages[1:] -%}{%- endif -%}"
TEMPLATES = {
    "as it is": TEMPLATE,
    "trims": TRIMMING_TEMPLATE,
    "trims answers": trims(".strip()"),
    "trims before questions": trims(".lstrip()", "user"),
    "trims line breaks after answers": trims(".rstrip('\\n')"),
    "simple": SIMPLE_TEMPLATE,
    "drops system": DROP_SYSTEM + TEMPLATE,
    "says the last twice": TEMPLATE + "{{ messages[-1]['content'] | trim }}",
}
BYTE_LEVEL = {name: tiny_tokenizer(template) for name, template in TEMPLATES.items()}


def both(tokenizer: Any, conversations: list[Conversation]) -> tuple[list[list[int]], list[list[int]]]:
    """The ids as the reward-model server reads them, and as the trainers do."""
    trained = ChatEncoder(tokenizer).encode([Rendering(c, False, "here") for c in conversations])
    return ChatFormatter(tokenizer).encode(conversations), trained


spaces = st.text(st.sampled_from(" \n\t\u00a0\u2003\x1f"), max_size=3)
pieces = st.sampled_from([*CONTROL, "a", "Hi.", "<|", "|>", "end", "é", "\U0001f600", " ", "\n"]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=4
)
contents = st.tuples(spaces, st.lists(pieces, max_size=5).map("".join), spaces).map("".join)
turns = st.lists(contents, min_size=1, max_size=5).map(
    lambda texts: [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
)
conversations = st.tuples(st.none() | contents, turns).map(
    lambda drawn: drawn[1] if drawn[0] is None else [{"role": "system", "content": drawn[0]}, *drawn[1]]
)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=60)
@given(st.lists(conversations, min_size=1, max_size=3))
def test_every_conversation_has_the_same_tokens(name: str, asked: list[Conversation]) -> None:
    tokenizer = BYTE_LEVEL[name]
    served, trained = both(tokenizer, asked)
    assert served == trained
    # A byte-level tokenizer loses nothing, so that both must also spell what the template renders.
    rendered = [tokenizer.apply_chat_template(c, tokenize=False) for c in asked]
    assert [tokenizer.decode(ids) for ids in served] == rendered


@settings(deadline=None, max_examples=60)
@given(st.lists(conversations, min_size=1, max_size=3))
def test_with_the_small_worlds_tokenizer(asked: list[Conversation]) -> None:
    served, trained = both(SMALL_WORLD, asked)
    assert served == trained


SMALL_WORLD = train_tokenizer(CORPUS, vocab_size=300, max_length=256)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How many apples?", "12."),
        ("  How many apples?\n", "\n 12. "),
        ("<|assistant|>12<|end|>", "  <|user|> \n"),
        ("", "<|end|>"),
        ("<|end|>", ""),
        ("<|end|>", " \n "),
        ("bonsaicontent000001x", "<|end|> bonsaicontent000000x"),
    ],
)
@pytest.mark.parametrize("name", TEMPLATES)
def test_by_hand(name: str, question: str, answer: str) -> None:
    conversation = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    (served,), (trained,) = both(BYTE_LEVEL[name], [conversation])
    assert served == trained
    assert BYTE_LEVEL[name].decode(served) == BYTE_LEVEL[name].apply_chat_template(
        conversation, tokenize=False
    )


def test_the_trimmed_forms_are_not_all_one() -> None:
    """What the tests above compare differs from template to template."""
    conversation = [{"role": "user", "content": " <|end|> "}, {"role": "assistant", "content": " b \n"}]
    encoded = {tuple(both(tokenizer, [conversation])[0][0]) for tokenizer in BYTE_LEVEL.values()}
    assert len(encoded) == len(TEMPLATES) - 1  # "drops system" has nothing to drop here


def test_a_tokenizer_that_writes_spaces_before_words() -> None:
    if not STORIES.is_dir():
        pytest.skip(f"needs the shared test data at {STORIES}")
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    tokenizer.chat_template = SIMPLE_TEMPLATE
    asked = [
        [{"role": "user", "content": "Tell me."}, {"role": "assistant", "content": " A story.\n"}],
        [{"role": "user", "content": "</s><s> Tell"}, {"role": "assistant", "content": "<unk> \n"}],
        [{"role": "system", "content": ""}, {"role": "user", "content": "\u2581 x"}],
    ]
    served, trained = both(tokenizer, asked)
    assert served == trained
    end = tokenizer.eos_token_id
    assert [ids.count(end) for ids in served] == [1, 1, 0]  # the template's own; none that was typed


def test_bytes_as_tokens() -> None:
    asked = [[{"role": "user", "content": "é<|user|>"}, {"role": "assistant", "content": "\x00"}]]
    served, trained = both(make_tokenizer(), asked)
    assert served == trained
