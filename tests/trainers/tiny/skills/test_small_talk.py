"""Small talk, by hand."""

import pytest

from trainers.tiny.skills.small_talk import SmallTalkSkill

SAD: dict[str, str | int] = {"name": "Mira", "verb": "lost", "object": "kite"}
HAPPY: dict[str, str | int] = {"name": "Mira", "verb": "found", "object": "kite"}


@pytest.mark.parametrize(
    ("facts", "text", "correct"),
    [
        (SAD, "Hello Mira! I am sorry that you lost your kite.", 1.0),
        (HAPPY, "Hello Mira! I am glad that you found your kite.", 1.0),
        (SAD, "Hello! I am sorry that you lost your kite.", 0.7),
        (SAD, "Hello Mira! I am glad that you lost your kite.", 0.3 - 0.5 + 0.2),  # the wrong feeling
        (SAD, "Sorry and glad, Mira!", 0.3 - 0.5),  # both is no feeling
        (SAD, "Hello Tom! I am sorry that you lost your kite.", 0.5 - 0.2 + 0.2),  # another's name
        (SAD, "Hello Mira and Tom! Sorry about the kite.", 0.3 - 0.2 + 0.5 + 0.2),
        (SAD, "I am sorry that you lost your hat.", 0.5),
        (HAPPY, "What a pity.", -0.5),
        (SAD, "Hello.", 0.0),
        (SAD, "", 0.0),
    ],
)
def test_correctness(facts: dict[str, str | int], text: str, correct: float) -> None:
    assert SmallTalkSkill().correctness(facts, text) == pytest.approx(correct)
