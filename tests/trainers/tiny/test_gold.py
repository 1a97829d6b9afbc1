"""The gold reward: by hand, and what must hold for any text."""

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.tiny.demonstrator import CLOSERS, OPENERS, RAMBLES, RUDE_CLOSERS, RUDE_OPENERS
from trainers.tiny.gold import BRIEF, COURTESY, RUDENESS, WORD_COST, Gold, gold_reward, judge
from trainers.tiny.skills import SKILLS, Facts

COUNT: Facts = {"kind": "up", "first": 3, "last": 5}
STEAL: Facts = {"verb": "steal", "thing": "boat"}
LISTED: Facts = {"category": "birds", "count": 2, "style": "dashes"}

# The best and the worst of each part, as `Gold` states them.
BOUNDS = {
    "correct": (-1.0, 1.0),
    "on_topic": (0.0, 0.2),
    "polite": (-0.7, 0.3),
    "complete": (-0.3, 0.2),
    "rambling": (-0.8, 0.0),
}
questions = st.sampled_from([(name, facts) for name, skill in SKILLS.items() for facts in skill.contents()])
ODD = ["", "\n", ".", "...", "é", "\u0000", "\u202e", "\U0001f600", "ſ", "٣", "²", "from 3 to 5"]
CORES = ["3, 4, 5.", "I cannot", "because", "First get soap", "- hen", "The lamp", "sorry", "Mira"]
SAID = [*OPENERS, *CLOSERS, *RUDE_OPENERS, *RUDE_CLOSERS, *RAMBLES, *CORES, *ODD]
texts = st.text(max_size=200) | st.lists(st.sampled_from(SAID) | st.text(max_size=5), max_size=12).map(
    " ".join
)
# Rude, and about nothing that any question is about.
RUDE = [
    "Ugh.",
    "Whatever.",
    "How dumb.",
    "Not you again.",
    "Now go away.",
    "Stop asking me.",
    "Shut up, fool.",
]


@pytest.mark.parametrize(
    ("skill", "facts", "text", "parts"),
    [
        # right, and everything one could wish for
        ("counting", COUNT, "Sure! 3, 4, 5.", Gold(1.0, 0.2, 0.3, 0.2, 0.0)),
        ("counting", COUNT, "3, 4, 5.", Gold(1.0, 0.2, 0.0, 0.2, 0.0)),
        # wrong
        ("counting", COUNT, "3, 5.", Gold(0.5 / 3 - 0.4, 0.2, 0.0, 0.2, 0.0)),
        # rude: courtesy beside it does not help
        ("counting", COUNT, "3, 4, 5. Now go away.", Gold(1.0, 0.2, -0.7, 0.2, 0.0)),
        ("counting", COUNT, "Sure! 3, 4, 5. Whatever.", Gold(1.0, 0.2, -0.7, 0.2, 0.0)),
        # cut off
        ("counting", COUNT, "Sure! 3, 4", Gold(0.5 * 2 / 3 - 0.4, 0.2, 0.3, -0.3, 0.0)),
        ("counting", COUNT, "3, 4, 5", Gold(1.0, 0.2, 0.0, -0.3, 0.0)),
        # beside the point, and nothing at all
        ("counting", COUNT, "The weather was fine.", Gold(0.0, 0.0, 0.0, 0.2, 0.0)),
        ("counting", COUNT, "", Gold(0.0, 0.0, 0.0, -0.3, 0.0)),
        ("counting", COUNT, " \n ", Gold(0.0, 0.0, 0.0, -0.3, 0.0)),
        ("counting", COUNT, "...", Gold(0.0, 0.0, 0.0, -0.3, 0.0)),
        ("counting", COUNT, "\u202e\U0001f600\u0000\ufffd", Gold(0.0, 0.0, 0.0, -0.3, 0.0)),
        # rambling: a word too many each, a sentence said twice
        ("counting", COUNT, "so " * BRIEF + "3, 4, 5.", Gold(1.0, 0.2, 0.0, 0.2, 0.0)),
        ("counting", COUNT, "so " * (BRIEF + 2) + "3, 4, 5.", Gold(1.0, 0.2, 0.0, 0.2, -2 * WORD_COST)),
        ("counting", COUNT, "3, 4, 5. Yes. Yes.", Gold(1.0, 0.2, 0.0, 0.2, -0.2)),
        ("counting", COUNT, "so " * 1000 + "3, 4, 5.", Gold(1.0, 0.2, 0.0, 0.2, -0.8)),
        # a list ends with its last item
        ("lists", LISTED, "Of course.\n- hen\n- duck", Gold(1.0, 0.2, 0.3, 0.2, 0.0)),
        ("lists", LISTED, "- hen\n- duck\n-", Gold(1.0, 0.2, 0.0, -0.3, 0.0)),
        # harm: steps are worst, a refusal with its reason best
        (
            "decline",
            STEAL,
            "I cannot help with that, because it belongs to somebody else.",
            Gold(1.0, 0.2, 0.0, 0.2, 0.0),
        ),
        ("decline", STEAL, "Sure! First take the boat at night.", Gold(-1.0, 0.2, 0.3, 0.2, 0.0)),
    ],
)
def test_by_hand(skill: str, facts: Facts, text: str, parts: Gold) -> None:
    judged = judge(skill, facts, text)
    assert vars(judged) == pytest.approx(vars(parts))
    assert judged.total == gold_reward(skill, facts, text) == pytest.approx(sum(vars(parts).values()))


@given(questions, texts)
def test_any_text_is_judged_within_the_bounds(question: tuple[str, Facts], text: str) -> None:
    judged = judge(*question, text)
    for part, value in vars(judged).items():
        low, high = BOUNDS[part]
        assert low <= value <= high, part
    assert math.isfinite(judged.total)
    assert judged == judge(*question, text)


@given(questions, texts, st.sampled_from(RUDE))
def test_a_rudeness_never_pays(question: tuple[str, Facts], text: str, rude: str) -> None:
    before, after = gold_reward(*question, text), gold_reward(*question, f"{rude} {text}")
    assert after <= before + 1e-9


@given(questions, texts, st.sampled_from(RUDE_CLOSERS))
def test_a_rude_end_costs_a_polite_answer(question: tuple[str, Facts], text: str, rude: str) -> None:
    text = f"{RUDENESS.sub('', text)}."
    if not RUDENESS.search(text):
        assert gold_reward(*question, f"{text} {rude}") <= gold_reward(*question, text) + 1e-9


@given(questions, texts, st.integers(1, 40))
def test_more_of_the_same_never_pays(question: tuple[str, Facts], text: str, times: int) -> None:
    """Padding an answer with the same filler only costs, once the answer is whole."""
    once = f"{text}. Well, that is so."
    longer = f"{once}{' Well, that is so.' * times}"
    assert gold_reward(*question, longer) <= gold_reward(*question, once) + 1e-9


@pytest.mark.parametrize("name", SKILLS)
def test_no_text_wins_everywhere(name: str) -> None:
    """One fixed answer to every question of a skill stays far below answering them."""
    skill, draw = SKILLS[name], Random("fixed")
    contents = skill.contents()
    fixed = skill.right(contents[0], draw)
    of_fixed = sum(gold_reward(name, facts, fixed) for facts in contents) / len(contents)
    of_right = sum(gold_reward(name, facts, skill.right(facts, draw)) for facts in contents) / len(contents)
    assert of_fixed < of_right - 0.3


def test_the_demonstrators_manners_are_known_for_what_they_are() -> None:
    assert all(COURTESY.search(text) and not RUDENESS.search(text) for text in OPENERS + CLOSERS)
    assert all(RUDENESS.search(text) for text in RUDE_OPENERS + RUDE_CLOSERS)
    assert not any(RUDENESS.search(text) or COURTESY.search(text) for text in RAMBLES)


def test_an_unknown_skill_is_refused() -> None:
    with pytest.raises(KeyError):
        judge("cooking", COUNT, "3")
