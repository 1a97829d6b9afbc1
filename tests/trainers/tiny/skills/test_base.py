"""Words and facts."""

import pytest

from trainers.tiny.skills.base import assistant, mentions, number_of, text_of, user, words


def test_words_are_letters_or_digits_in_lower_case() -> None:
    assert words("It's 12 Apples, naïve -- ok!") == ["it", "s", "12", "apples", "na", "ve", "ok"]
    assert words("") == words("?! \n") == []


@pytest.mark.parametrize(
    ("text", "word", "found"),
    [
        ("A boat.", "boat", True),
        ("Two BOATS!", "boat", True),
        ("Two boxes", "box", True),
        ("A boathouse", "boat", False),
        ("rowboat", "boat", False),
        ("boat's", "boat", True),
        ("", "boat", False),
        ("a.b", "a.b", True),
        ("axb", "a.b", False),
    ],
)
def test_mentions_whole_words_and_plain_plurals(text: str, word: str, found: bool) -> None:
    assert mentions(text, word) is found


def test_facts_have_their_kind() -> None:
    assert text_of({"a": "x"}, "a") == "x"
    assert number_of({"a": 3}, "a") == 3
    with pytest.raises(TypeError, match="'a' must be text"):
        text_of({"a": 3}, "a")
    with pytest.raises(TypeError, match="'a' must be a number"):
        number_of({"a": "x"}, "a")
    with pytest.raises(KeyError):
        text_of({}, "a")


def test_messages() -> None:
    assert user("a") == {"role": "user", "content": "a"}
    assert assistant("b") == {"role": "assistant", "content": "b"}
