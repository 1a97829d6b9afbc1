"""Counting, by hand."""

import pytest

from trainers.tiny.skills.base import Facts
from trainers.tiny.skills.counting import CountingSkill, expected, numbers_in

UP: Facts = {"kind": "up", "first": 3, "last": 7}
DOWN: Facts = {"kind": "down", "first": 7, "last": 3}
AFTER: Facts = {"kind": "after", "first": 9, "last": 10}
BEFORE: Facts = {"kind": "before", "first": 9, "last": 8}


def test_what_is_expected() -> None:
    assert expected(UP) == [3, 4, 5, 6, 7]
    assert expected(DOWN) == [7, 6, 5, 4, 3]
    assert expected(AFTER) == [10]
    assert expected(BEFORE) == [8]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3, 4 and five.", [3, 4, 5]),
        ("Counting from 3 to 7: 3, 4", [3, 4]),
        ("from 3 up to 7", []),
        ("TWENTY, nineteen", [20, 19]),
        ("someone", []),
        ("", []),
        ("9" * 5000, [999999999]),
        ("٣", [3]),  # an Arabic digit is a digit
        ("²", []),
    ],
)
def test_numbers_in_a_text(text: str, numbers: list[int]) -> None:
    assert numbers_in(text) == numbers


@pytest.mark.parametrize(
    ("facts", "text", "correct"),
    [
        (UP, "3, 4, 5, 6, 7.", 1.0),
        (UP, "three four five six seven", 1.0),
        (UP, "From 3 to 7 it is 3 4 5 6 7!", 1.0),
        (UP, "3, 4, 5, 6", 0.5 * 4 / 5 - 0.4),  # stops early
        (UP, "3, 4, 6, 7.", 0.5 * 2 / 5 - 0.4),  # leaves one out
        (UP, "3, 4, 5, 6, 7, 8.", 0.5 - 0.4),  # does not stop
        (UP, "7, 6, 5, 4, 3.", -0.4),
        (UP, "I cannot count.", 0.0),
        (UP, "", 0.0),
        (DOWN, "7, 6, 5, 4, 3.", 1.0),
        (AFTER, "10 comes after 9.", 1.0),
        (AFTER, "It is ten.", 1.0),
        (AFTER, "11", -0.4),
        (AFTER, "After 9 comes 9.", 0.0),
        (BEFORE, "8.", 1.0),
        (BEFORE, "10.", -0.4),
    ],
)
def test_correctness(facts: dict[str, str | int], text: str, correct: float) -> None:
    assert CountingSkill().correctness(facts, text) == pytest.approx(correct)
