"""Noisy labels: a Bradley-Terry coin by the gold reward."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.tiny.gold import gold_reward
from trainers.tiny.preferences import Pair, Samples, label, noisy_ceiling, preference_probability
from trainers.tiny.skills.base import Facts

FACTS: Facts = {"kind": "up", "first": 3, "last": 5}
GOOD, BAD, WORSE = "3, 4, 5.", "3, 4.", "Whatever"


def row(*responses: str) -> Samples:
    return {
        "prompt": [{"role": "user", "content": "Count from 3 to 5."}],
        "skill": "counting",
        "facts": FACTS,
        "split": "train",
        "responses": list(responses),
    }


def gap(better: str, worse: str) -> float:
    return gold_reward("counting", FACTS, better) - gold_reward("counting", FACTS, worse)


def pair(chosen: float, rejected: float) -> Pair:
    return {"prompt": [], "chosen": [], "rejected": [], "gold_chosen": chosen, "gold_rejected": rejected}


def test_the_probability_by_hand() -> None:
    assert preference_probability(1.0, 1.0, 3.0) == 0.5
    assert preference_probability(1.0, 0.0, math.log(3)) == pytest.approx(0.75)  # 3 / (3 + 1)
    assert preference_probability(0.0, 1.0, math.log(3)) == pytest.approx(0.25)
    assert preference_probability(1.5, 0.5, 3.0) == pytest.approx(0.952574, abs=1e-6)


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0, 20))
def test_one_of_two_is_preferred(a: float, b: float, scale: float) -> None:
    assert preference_probability(a, b, scale) + preference_probability(b, a, scale) == pytest.approx(1)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 3.0])
def test_labels_flip_as_often_as_the_sigmoid_says(scale: float) -> None:
    count = 4000
    pairs = list(label([row(GOOD, BAD)] * count, 1, scale, seed=5))
    kept = sum(p["chosen"][0]["content"] == GOOD for p in pairs)
    probability = preference_probability(gap(GOOD, BAD), 0.0, scale)
    deviation = math.sqrt(count * probability * (1 - probability))
    assert abs(kept - count * probability) < 4.5 * deviation  # by chance once in 150,000 seeds


def test_the_order_of_the_answers_does_not_matter() -> None:
    count = 4000
    firsts = [
        sum(p["chosen"][0]["content"] == GOOD for p in label([row(*order)] * count, 1, 1.0, seed=6))
        for order in ((GOOD, BAD), (BAD, GOOD))
    ]
    assert abs(firsts[0] - firsts[1]) < 4.5 * math.sqrt(2 * count * 0.25)


def test_a_pair_carries_its_prompt_and_golds() -> None:
    for found in label([row(GOOD, WORSE)] * 50, 1, 0.5, seed=0):
        chosen, rejected = found["chosen"][0], found["rejected"][0]
        assert found["prompt"] == row()["prompt"]
        assert {chosen["content"], rejected["content"]} == {GOOD, WORSE}
        assert chosen["role"] == rejected["role"] == "assistant"
        assert found["gold_chosen"] == gold_reward("counting", FACTS, chosen["content"])
        assert found["gold_rejected"] == gold_reward("counting", FACTS, rejected["content"])


@pytest.mark.parametrize(
    ("responses", "asked", "made"),
    [
        ((GOOD, BAD, WORSE), 2, 2),
        ((GOOD, BAD, WORSE), 3, 3),
        ((GOOD, BAD, WORSE), 9, 3),  # there are no more
        ((GOOD, GOOD, BAD), 9, 1),  # the same answer twice is one
        ((GOOD, GOOD), 9, 0),
        ((GOOD,), 9, 0),
        ((), 9, 0),
    ],
)
def test_pairs_are_of_different_answers_and_different_themselves(
    responses: tuple[str, ...], asked: int, made: int
) -> None:
    pairs = list(label([row(*responses)], asked, 3.0, seed=0))
    sides = [frozenset((p["chosen"][0]["content"], p["rejected"][0]["content"])) for p in pairs]
    assert len(sides) == len(set(sides)) == made
    assert all(len(side) == 2 for side in sides)


def test_the_seed_decides() -> None:
    rows = [row(GOOD, BAD, WORSE)] * 20
    assert list(label(rows, 2, 1.0, seed=1)) == list(label(rows, 2, 1.0, seed=1))
    assert list(label(rows, 2, 1.0, seed=1)) != list(label(rows, 2, 1.0, seed=2))


def test_the_ceiling_by_hand() -> None:
    """Gaps of 1, 1 and 0 at scale log 3: (0.75 + 0.75 + 0.5) / 3, whichever side was chosen."""
    pairs = [pair(1.0, 0.0), pair(0.5, 1.5), pair(0.3, 0.3)]
    assert noisy_ceiling(pairs, math.log(3)) == pytest.approx(2 / 3)
    assert noisy_ceiling(pairs, 0.0) == 0.5


def test_the_ceiling_is_what_a_judge_who_knows_the_gold_reaches() -> None:
    pairs = list(label([row(GOOD, BAD, WORSE)] * 2000, 3, 1.0, seed=7))
    agreed = sum(p["gold_chosen"] > p["gold_rejected"] for p in pairs) / len(pairs)
    assert abs(agreed - noisy_ceiling(pairs, 1.0)) < 4.5 * math.sqrt(0.25 / len(pairs))
