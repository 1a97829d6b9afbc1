"""Pairs of sampled answers, labelled by people who mostly, but not always, prefer the better one.

Of two answers with gold rewards a and b the first is preferred with probability sigmoid(scale * (a - b))
(Bradley-Terry). No trainer sees the gold rewards; they stand beside the labels for the evaluation.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import combinations
from random import Random
from statistics import fmean
from typing import TypedDict

from trainers.tiny.generate import Prompt
from trainers.tiny.gold import gold_reward
from trainers.tiny.skills import Message


class Samples(Prompt):
    """A prompt with its hidden facts and several answers that a model gave to it."""

    responses: list[str]


class Pair(TypedDict):
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    gold_chosen: float
    gold_rejected: float


def preference_probability(gold_a: float, gold_b: float, scale: float) -> float:
    """The probability that people say a is better than b (Bradley and Terry 1952)."""
    return 1.0 / (1.0 + math.exp(-scale * (gold_a - gold_b)))


def label(rows: Iterable[Samples], pairs_per_prompt: int, scale: float, seed: int) -> Iterator[Pair]:
    """Up to `pairs_per_prompt` pairs of different answers to each prompt, each labelled by one coin flip."""
    draw = Random(f"{seed} labels")
    for row in rows:
        texts = list(dict.fromkeys(row["responses"]))
        couples = list(combinations(texts, 2))
        for a, b in draw.sample(couples, min(pairs_per_prompt, len(couples))):
            yield _flip(row, a, b, scale, draw)


def noisy_ceiling(pairs: Iterable[Pair], scale: float) -> float:
    """The share of noisy labels that a judge who knows the gold reward agrees with, on average."""
    gaps = [abs(pair["gold_chosen"] - pair["gold_rejected"]) for pair in pairs]
    return fmean(preference_probability(gap, 0.0, scale) for gap in gaps)


def _flip(row: Samples, a: str, b: str, scale: float, draw: Random) -> Pair:
    gold_a, gold_b = (gold_reward(row["skill"], row["facts"], text) for text in (a, b))
    if draw.random() >= preference_probability(gold_a, gold_b, scale):
        a, b, gold_a, gold_b = b, a, gold_b, gold_a
    return {
        "prompt": row["prompt"],
        "chosen": [{"role": "assistant", "content": a}],
        "rejected": [{"role": "assistant", "content": b}],
        "gold_chosen": gold_a,
        "gold_rejected": gold_b,
    }
