"""What every skill promises, over all of its contents."""

import json
from random import Random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.tiny.skills import SKILLS
from trainers.tiny.skills.base import Facts, split_of_content
from trainers.tiny.world import Split

DRAWS = 6
"""Answers drawn for each content."""
names = pytest.mark.parametrize("name", SKILLS)


def key_of(facts: Facts) -> str:
    return json.dumps(facts, sort_keys=True)


def test_skills_are_known_by_their_own_names() -> None:
    assert [skill.name for skill in SKILLS.values()] == list(SKILLS)


@names
def test_contents_are_different_in_a_fixed_order_and_json(name: str) -> None:
    contents = SKILLS[name].contents()
    assert contents == SKILLS[name].contents()
    assert len({key_of(facts) for facts in contents}) == len(contents)
    assert [json.loads(key_of(facts)) for facts in contents] == contents


@names
def test_every_split_has_contents(name: str) -> None:
    splits = [split_of_content(name, facts) for facts in SKILLS[name].contents()]
    assert set(splits) == set(get_args(Split))
    assert 0.5 < splits.count("train") / len(splits) < 0.9


@names
def test_a_right_answer_is_all_right_and_a_wrong_one_never_is(name: str) -> None:
    skill, draw = SKILLS[name], Random("right and wrong")
    for facts in skill.contents():
        for _ in range(DRAWS):
            right, wrong = skill.right(facts, draw), skill.wrong(facts, draw)
            assert skill.correctness(facts, right) == 1.0, (facts, right)
            assert skill.correctness(facts, wrong) < 1.0, (facts, wrong)


@names
def test_wrong_answers_are_far_below_right_ones_on_average(name: str) -> None:
    skill, draw = SKILLS[name], Random("far below")
    rewards = [skill.correctness(facts, skill.wrong(facts, draw)) for facts in skill.contents()]
    assert sum(rewards) / len(rewards) < 0.6


@names
def test_the_answer_to_one_content_is_mostly_wrong_for_another(name: str) -> None:
    """Correctness hangs on the hidden facts: the same fine text is no answer to everything."""
    skill, draw = SKILLS[name], Random("another")
    contents = skill.contents()
    others = [(facts, draw.choice(contents)) for facts in contents]
    right = [skill.correctness(a, skill.right(b, draw)) == 1.0 for a, b in others if a != b]
    assert sum(right) / len(right) < 0.2


@names
def test_a_conversation_ends_with_the_persons_request(name: str) -> None:
    skill, draw = SKILLS[name], Random("questions")
    for facts in skill.contents():
        messages = skill.ask(facts, draw)
        roles = [message["role"] for message in messages]
        assert roles == ["user", "assistant", "user"][-len(messages) :]
        text = " ".join(message["content"] for message in messages)
        assert "{" not in text


@names
def test_every_content_has_a_topic_and_its_texts_are_filled_in(name: str) -> None:
    skill, draw = SKILLS[name], Random("topic")
    for facts in skill.contents():
        assert skill.topic(facts)
        assert "{" not in skill.prose(facts, draw) + skill.right(facts, draw) + skill.wrong(facts, draw)


@names
@given(text=st.text() | st.text("0123456789 ,.-\n"), number=st.integers(0, 10**6))
def test_correctness_is_within_its_bounds_for_any_text(name: str, text: str, number: int) -> None:
    contents = SKILLS[name].contents()
    assert -1.0 <= SKILLS[name].correctness(contents[number % len(contents)], text) <= 1.0


@names
def test_nothing_said_is_worth_nothing(name: str) -> None:
    facts = SKILLS[name].contents()[0]
    assert SKILLS[name].correctness(facts, "") <= 0.0


@names
def test_facts_of_another_skill_are_refused(name: str) -> None:
    with pytest.raises((KeyError, TypeError)):
        SKILLS[name].correctness({"no": "facts"}, "Some text.")
