"""Facts, by hand: the world's own values stand for whatever they are."""

from random import Random

import pytest

from trainers.tiny.skills.base import mentions, split_of_content
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


def test_some_questions_follow_up_on_another_with_its_right_answer() -> None:
    draw = Random(0)
    asked = [FactSkill().ask(FACTS, draw) for _ in range(300)]
    follow_ups = [messages for messages in asked if len(messages) == 3]
    assert 40 < len(follow_ups) < 110  # a quarter; four and a half standard deviations are 34
    for first, answer, then in follow_ups:
        assert PERSON.name in first["content"]
        assert any(value in answer["content"] for value in PERSON.values.values())
        assert PERSON.name not in then["content"]
        assert RIGHT not in answer["content"]  # what is asked for next is not given away


def test_a_first_turn_gives_away_no_content_of_another_split() -> None:
    """The statements of a person's attribute all hold its value: none of another split's is told."""
    draw = Random(1)
    for facts in FactSkill().contents():
        entity = ENTITIES[str(facts["entity"])]
        elsewhere = [
            value
            for key, value in entity.values.items()
            if split_of_content("facts", {**facts, "attribute": key}) != split_of_content("facts", facts)
        ]
        for _ in range(20):
            told = " ".join(message["content"] for message in FactSkill().ask(facts, draw)[1:2])
            assert not any(mentions(told, value) for value in elsewhere), (facts, told)


@pytest.mark.parametrize("name", ENTITIES)
def test_the_topic_is_the_name_or_its_pronoun(name: str) -> None:
    facts: dict[str, str | int] = {"entity": name, "attribute": next(iter(ENTITIES[name].values))}
    assert FactSkill().topic(facts) == [name, ENTITIES[name].pronoun]
