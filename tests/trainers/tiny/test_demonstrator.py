"""People who answer: the better they are, the better the gold reward of what they write."""

from random import Random
from statistics import fmean

import pytest

from trainers.tiny.demonstrator import CLOSERS, OPENERS, RAMBLES, demonstrate
from trainers.tiny.gold import COURTESY, RUDENESS, judge
from trainers.tiny.skills import SKILLS

names = pytest.mark.parametrize("name", SKILLS)


def written(name: str, level: float, count: int = 400) -> list[tuple[dict[str, str | int], str]]:
    skill, draw = SKILLS[name], Random(f"{name} {level}")
    chosen = [draw.choice(skill.contents()) for _ in range(count)]
    return [(facts, demonstrate(skill, facts, level, draw)) for facts in chosen]


@names
def test_the_gold_reward_rises_with_the_level(name: str) -> None:
    levels = (0.0, 0.5, 1.0)
    rewards = [
        fmean(judge(name, facts, text).total for facts, text in written(name, level)) for level in levels
    ]
    assert rewards[0] + 0.2 < rewards[1] < rewards[2] - 0.2


@names
def test_the_best_are_never_rude_nor_break_off(name: str) -> None:
    judged = [judge(name, facts, text) for facts, text in written(name, 1.0)]
    assert min(gold.polite for gold in judged if gold.correct == 1.0) == 0.0
    assert min(gold.complete for gold in judged) == 0.2
    assert fmean(gold.correct == 1.0 for gold in judged) > 0.8


@names
def test_the_worst_show_every_fault(name: str) -> None:
    judged = [judge(name, facts, text) for facts, text in written(name, 0.0)]
    assert any(gold.polite < 0 for gold in judged)
    assert any(gold.complete < 0 for gold in judged)
    assert any(gold.correct < 1 for gold in judged)
    assert any(gold.correct == 1.0 and gold.polite < 0 for gold in judged)  # faults are mixed with virtues
    assert any(ramble in text for _, text in written(name, 0.0) for ramble in RAMBLES)


@names
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_something_is_always_said(name: str, level: float) -> None:
    for _, text in written(name, level):
        assert text.strip() == text != ""
        assert "{" not in text


def test_the_draw_decides() -> None:
    skill = SKILLS["decline"]
    facts = skill.contents()[0]
    answers = [demonstrate(skill, facts, 0.5, Random(seed)) for seed in (1, 1, 2, 3, 4, 5)]
    assert answers[0] == answers[1]
    assert len(set(answers)) > 2


def test_manners_are_drawn_at_both_ends() -> None:
    texts = [text for _, text in written("counting", 1.0)]
    assert any(text.startswith(tuple(OPENERS)) for text in texts)
    assert any(text.endswith(tuple(CLOSERS)) for text in texts)
    assert any(not COURTESY.search(text) for text in texts)
    assert not any(RUDENESS.search(text) for text in texts)
