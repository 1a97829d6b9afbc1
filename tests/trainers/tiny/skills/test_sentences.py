"""Sentences with two words, by hand."""

import pytest

from trainers.tiny.skills.sentences import LONGEST, SentenceSkill

FACTS: dict[str, str | int] = {"a": "lamp", "b": "boat"}


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("The lamp is on the boat.", 1.0),
        ("Sure! Lamps light the BOAT.", 1.0),
        ("The lamp is on the boat", 1.0),
        ("Lamp and boat.", 0.5),  # too short
        ("lamp boat " + "so " * (LONGEST - 2), 1.0),
        ("lamp boat " + "so " * (LONGEST - 1), 0.5),  # too long
        ("I like the lamp. The boat is old.", 0.5),  # apart
        ("The lamp is old.", 0.0),
        ("The lampion is in the boathouse.", -0.4),
        ("Here you are.", -0.4),
        ("", -0.4),
    ],
)
def test_correctness(text: str, correct: float) -> None:
    assert SentenceSkill().correctness(FACTS, text) == correct
