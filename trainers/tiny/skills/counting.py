"""Counting up and down, and the number before or after another."""

import re
from random import Random

from trainers.tiny.skills.base import Facts, Message, number_of, text_of, user

ASK_RANGE = {
    "up": [
        "Count from {first} to {last}.",
        "Please count from {first} to {last}.",
        "Can you count from {first} up to {last}?",
    ],
    "down": ["Count down from {first} to {last}.", "Please count backwards from {first} to {last}."],
}
ASK_NEXT = {
    "after": ["Which number comes after {first}?", "What comes right after {first}?"],
    "before": ["Which number comes before {first}?", "What comes right before {first}?"],
}
SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()


def expected(facts: Facts) -> list[int]:
    """The numbers that a right answer says, in order."""
    first, last = number_of(facts, "first"), number_of(facts, "last")
    if text_of(facts, "kind") in ASK_NEXT:
        return [last]
    step = 1 if last >= first else -1
    return list(range(first, last + step, step))


def numbers_in(text: str) -> list[int]:
    """The numbers said in `text`, as digits or (to twenty) as words; "from 3 to 7" is a title."""
    text = re.sub(r"\bfrom \d{1,6} (up |down )?to \d{1,6}\b", " ", text.lower())
    found = re.findall(r"\d+|[a-z]+", text)
    return [int(w[:9]) if w.isdigit() else SMALL.index(w) for w in found if w.isdigit() or w in SMALL]


def comma(values: list[int]) -> str:
    return ", ".join(map(str, values))


class CountingSkill:
    name = "counting"

    def contents(self) -> list[Facts]:
        found: list[Facts] = []
        for first in range(1, 21):
            for length in range(3, 8):
                last = first + length - 1
                found += [
                    {"kind": "up", "first": first, "last": last},
                    {"kind": "down", "first": last, "last": first},
                ]
        for first in range(2, 40):
            found += [
                {"kind": "after", "first": first, "last": first + 1},
                {"kind": "before", "first": first, "last": first - 1},
            ]
        return found

    def ask(self, facts: Facts, draw: Random) -> list[Message]:
        wordings = {**ASK_RANGE, **ASK_NEXT}[text_of(facts, "kind")]
        return [user(draw.choice(wordings).format(**facts))]

    def right(self, facts: Facts, draw: Random) -> str:
        return self._say(facts, expected(facts), draw)

    def wrong(self, facts: Facts, draw: Random) -> str:
        values = expected(facts)
        if len(values) == 1:
            return self._say(facts, [max(0, values[0] + draw.choice([-3, -2, 2, 3, 10]))], draw)
        kind = draw.random()
        if kind < 0.4:  # stops early
            return self._say(facts, values[: draw.randint(1, len(values) - 1)], draw)
        if kind < 0.7:  # leaves one out
            missing = draw.choice(values)
            return self._say(facts, [v for v in values if v != missing], draw)
        start = draw.randint(1, len(values) - 1)  # begins in the middle
        return self._say(facts, values[start:] + values[:start], draw)

    def correctness(self, facts: Facts, text: str) -> float:
        """1 for exactly the numbers asked for; else up to 0.5 for the share of the row before the first slip,
        less 0.4 where any number was said."""
        want, said = expected(facts), numbers_in(text)
        if text_of(facts, "kind") in ASK_NEXT:
            said = [n for n in said if n != number_of(facts, "first")]
        if said == want:
            return 1.0
        matching = next(
            (i for i, (a, b) in enumerate(zip(said, want, strict=False)) if a != b), min(len(said), len(want))
        )
        return 0.5 * matching / len(want) - (0.4 if said else 0.0)

    def topic(self, facts: Facts) -> list[str]:
        return [str(expected(facts)[0]), str(number_of(facts, "first"))]

    def prose(self, facts: Facts, draw: Random) -> str:
        return self._say(facts, expected(facts), draw)

    def _say(self, facts: Facts, values: list[int], draw: Random) -> str:
        kind, first = text_of(facts, "kind"), number_of(facts, "first")
        if kind in ASK_NEXT:
            forms = [
                f"{values[0]} comes {kind} {first}.",
                f"The number {kind} {first} is {values[0]}.",
                f"It is {values[0]}.",
            ]
            return draw.choice(forms)
        return draw.choice(
            [f"{comma(values)}.", f"Here we go: {comma(values)}.", f"The numbers are {comma(values)}."]
        )
