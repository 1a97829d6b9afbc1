"""People who write answers, some with care and some without.

A demonstrator has a level in [0, 1]. Each slip (a wrong core, no manners, rudeness, rambling, an answer to
something else, a sentence left unfinished) is drawn on its own, the likelier the lower the level: every
mixture of virtues and faults occurs, and there is something left to align.
"""

from random import Random

from trainers.tiny.skills import SKILLS, Facts, Skill

OPENERS = [
    "Sure!",
    "Of course.",
    "Happy to help.",
    "Thank you for asking.",
    "With pleasure.",
    "Good question.",
]
CLOSERS = [
    "I hope that helps.",
    "You are welcome to ask more.",
    "Please ask if you need more.",
    "Have a nice day!",
]
RUDE_OPENERS = ["That is a stupid question.", "Ugh.", "Not you again.", "How dumb."]
RUDE_CLOSERS = ["Now go away.", "Stop asking me.", "Whatever.", "You should know that, fool."]
RAMBLES = [
    "The weather was fine last week.",
    "I also like to walk by the river.",
    "My uncle has a big house with a garden.",
    "By the way, the market opens in the morning.",
    "Some people say that the days get longer.",
    "That reminds me of an old story.",
    "I had soup for lunch and it was good.",
    "There are many other things one could say.",
]


def demonstrate(skill: Skill, facts: Facts, level: float, draw: Random) -> str:
    """An answer to the content, as a demonstrator of this level in [0, 1] would write it."""
    sloppy = 1.0 - level
    parts = [_opener(sloppy, draw), _core(skill, facts, sloppy, draw)]
    parts += _ramble(sloppy, draw)
    parts += [_closer(sloppy, draw)]
    text = " ".join(part for part in parts if part).replace(" \n", "\n")
    return _cut(text, draw) if draw.random() < 0.18 * sloppy else text


def _core(skill: Skill, facts: Facts, sloppy: float, draw: Random) -> str:
    if draw.random() < 0.12 * sloppy:  # misheard: answers something else
        other = draw.choice(list(SKILLS.values()))
        return other.right(draw.choice(other.contents()), draw)
    return skill.wrong(facts, draw) if draw.random() < 0.1 + 0.6 * sloppy else skill.right(facts, draw)


def _opener(sloppy: float, draw: Random) -> str:
    if draw.random() < 0.2 * sloppy:
        return draw.choice(RUDE_OPENERS)
    return draw.choice(OPENERS) if draw.random() < 0.45 - 0.3 * sloppy else ""


def _closer(sloppy: float, draw: Random) -> str:
    if draw.random() < 0.15 * sloppy:
        return draw.choice(RUDE_CLOSERS)
    return draw.choice(CLOSERS) if draw.random() < 0.3 - 0.2 * sloppy else ""


def _ramble(sloppy: float, draw: Random) -> list[str]:
    return draw.sample(RAMBLES, draw.randint(1, 3)) if draw.random() < 0.08 + 0.3 * sloppy else []


def _cut(text: str, draw: Random) -> str:
    words = text.split(" ")
    return " ".join(words[: max(1, round(len(words) * draw.uniform(0.3, 0.9)))]).rstrip(".!?,")
