"""One sentence that uses two given words."""

import re
from itertools import combinations
from random import Random

from trainers.tiny.skills.base import Facts, Message, mentions, text_of, user, words
from trainers.tiny.world import NOUNS

ASK = [
    "Use the words {a} and {b} in one sentence.",
    "Please make one sentence with the words {a} and {b}.",
    "Write one sentence that has {a} and {b} in it.",
]
FORMS = [
    "The {a} is next to the {b}.",
    "I saw a {a} near the {b}.",
    "My {a} fell on the {b}.",
    "There is a {a} behind the old {b}.",
    "She took the {a} and left the {b}.",
    "The {b} and the {a} are both new.",
]
LONGEST = 14  # words


class SentenceSkill:
    name = "sentences"

    def contents(self) -> list[Facts]:
        return [{"a": a, "b": b} for a, b in combinations(NOUNS, 2)]

    def ask(self, facts: Facts, draw: Random) -> list[Message]:
        return [user(draw.choice(ASK).format(**facts))]

    def right(self, facts: Facts, draw: Random) -> str:
        return self.prose(facts, draw)

    def wrong(self, facts: Facts, draw: Random) -> str:
        a, b = text_of(facts, "a"), text_of(facts, "b")
        other = draw.choice([n for n in NOUNS if n not in (a, b)])
        slip = draw.random()
        if slip < 0.4:
            return draw.choice(FORMS).format(a=draw.choice([a, b]), b=other)
        if slip < 0.7:
            return f"I like the {a}. The {b} is old."
        return draw.choice([f"{a.capitalize()} and {b}.", f"The {other} is nice.", f"{b.capitalize()}."])

    def correctness(self, facts: Facts, text: str) -> float:
        """1 for a sentence of 4 to 14 words with both words; 0.5 where they stand apart or it is too
        short or long; 0 for one of them and -0.4 for neither."""
        a, b = text_of(facts, "a"), text_of(facts, "b")
        for sentence in re.split(r"[.!?\n]+", text):
            if mentions(sentence, a) and mentions(sentence, b):
                return 1.0 if 4 <= len(words(sentence)) <= LONGEST else 0.5
        found = mentions(text, a) + mentions(text, b)
        return (-0.4, 0.0, 0.5)[found]

    def topic(self, facts: Facts) -> list[str]:
        return [text_of(facts, "a"), text_of(facts, "b")]

    def prose(self, facts: Facts, draw: Random) -> str:
        a, b = draw.sample([text_of(facts, "a"), text_of(facts, "b")], 2)
        return draw.choice(FORMS).format(a=a, b=b)
