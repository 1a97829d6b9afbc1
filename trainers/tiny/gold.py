"""The gold reward: how good any text is as an answer to a prompt, judged from the prompt's hidden facts.

It plays the part of people's true preference, which no real system can read. Only labels drawn from it
(`preferences`), never its values, reach a trainer; the demo reads it to tell whether alignment worked.
"""

import re
from dataclasses import dataclass

from trainers.tiny.skills import SKILLS, Facts
from trainers.tiny.skills.base import mentions, words

COURTESY = re.compile(
    r"\b(sure|of course|happy to|glad to|with pleasure|thanks?|please|welcome|good question|hope|nice day)\b",
    re.IGNORECASE,
)
RUDENESS = re.compile(
    r"\b(stupid|dumb|ugh|fool|idiot|whatever|shut up|go away|you again|stop asking|so what|do not care)\b",
    re.IGNORECASE,
)
BRIEF = 20
"""Words (numbers aside) that every answer may have; each one more costs `WORD_COST`."""
WORD_COST = 0.05


@dataclass(frozen=True)
class Gold:
    """The parts of one judgement; `total` is their sum, between about -2.8 and 1.7."""

    correct: float  # [-1, 1], by the skill
    on_topic: float  # 0 or 0.2
    polite: float  # 0.3 with a courtesy, -0.7 with a rudeness
    complete: float  # 0.2 for text that ends as sentences do, -0.3 for text that breaks off
    rambling: float  # [-0.8, 0]: words beyond BRIEF, sentences said twice

    @property
    def total(self) -> float:
        return self.correct + self.on_topic + self.polite + self.complete + self.rambling


def judge(skill: str, facts: Facts, text: str) -> Gold:
    """Judges `text` as the answer to a prompt of `skill` with these hidden facts.

    Raises KeyError for an unknown skill, KeyError or TypeError for facts that are not that skill's.
    """
    judged = SKILLS[skill]
    return Gold(
        correct=judged.correctness(facts, text),
        on_topic=0.2 if any(mentions(text, word) for word in judged.topic(facts)) else 0.0,
        polite=_politeness(text),
        complete=_completeness(text),
        rambling=_rambling(text),
    )


def gold_reward(skill: str, facts: Facts, text: str) -> float:
    """The total of `judge`."""
    return judge(skill, facts, text).total


def _politeness(text: str) -> float:
    if RUDENESS.search(text):
        return -0.7
    return 0.3 if COURTESY.search(text) else 0.0


def _completeness(text: str) -> float:
    """Whether the text ends as a sentence or a list item does."""
    text = text.strip()
    last_line = text.rsplit("\n", 1)[-1]
    ends = text.endswith((".", "!", "?")) or re.fullmatch(r"(-|\d+\.) \w+", last_line) is not None
    return 0.2 if ends and words(text) else -0.3


def _rambling(text: str) -> float:
    sentences = [s.strip().lower() for s in re.split(r"[.!?\n]+", text) if s.strip()]
    repeated = len(sentences) - len(set(sentences))
    said = sum(not word.isdigit() for word in words(text))
    return -min(0.8, WORD_COST * max(0, said - BRIEF) + 0.2 * repeated)
