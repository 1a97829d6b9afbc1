"""Facts, by hand: the world's own values stand for whatever they are."""

from random import Random

import pytest

from trainers.tiny.skills.facts import FactSkill
from trainers.tiny.world import DOMAINS, ENTITIES, PEOPLE, PLACES

PERSON = PEOPLE[0]
FACTS: dict[str, str | int] = {"entity": PERSON.name, "attribute": "pet"}
RIGHT = PERSON.values["pet"]
WRONG, WRONG_TOO = [value for value in DOMAINS["pet"] if value != RIGHT][:2]


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        (f"{PERSON.name} has a {RIGHT}.", 1.0),
        (f"A {RIGHT.upper()}!", 1.0),
        (f"{RIGHT}s", 1.0),
        (f"A {WRONG}.", -0.5),
        (f"A {RIGHT} or a {WRONG}.", 0.2),
        (f"A {RIGHT}, no, a {WRONG} or a {WRONG_TOO}.", 0.2),
        ("I do not know.", 0.0),
        (f"{RIGHT}like", 0.0),
        ("", 0.0),
    ],
)
def test_correctness(text: str, correct: float) -> None:
    assert FactSkill().correctness(FACTS, text) == correct


def test_a_place_that_is_named_is_no_wrong_town() -> None:
    """ "Oakfield" in an answer about Oakfield is what was asked about, not a value."""
    place = PLACES[0]
    facts: dict[str, str | int] = {"entity": place.name, "attribute": "river"}
    assert FactSkill().correctness(facts, f"The river {place.values['river']} is in {place.name}.") == 1.0


def test_some_questions_follow_up_on_a_right_answer() -> None:
    draw = Random(0)
    asked = [FactSkill().ask(FACTS, draw) for _ in range(300)]
    follow_ups = [messages for messages in asked if len(messages) == 3]
    assert 30 < len(follow_ups) < 100  # a fifth; six standard deviations are 42
    for first, answer, then in follow_ups:
        assert PERSON.name in first["content"]
        assert any(value in answer["content"] for value in PERSON.values.values())
        assert PERSON.name not in then["content"]
        assert RIGHT not in answer["content"]  # what is asked for next is not given away


@pytest.mark.parametrize("name", ENTITIES)
def test_the_topic_is_the_name_or_its_pronoun(name: str) -> None:
    facts: dict[str, str | int] = {"entity": name, "attribute": next(iter(ENTITIES[name].values))}
    assert FactSkill().topic(facts) == [name, ENTITIES[name].pronoun]
