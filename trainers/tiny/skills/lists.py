"""Lists of things in a format that the person asks for."""

import re
from random import Random

from trainers.tiny.skills.base import Facts, Message, number_of, text_of, user
from trainers.tiny.world import CATEGORIES

ASK = [
    "Name {count} {category}, {style}.",
    "Please name {count} {category}, {style}.",
    "Give me {count} {category}, {style}.",
    "I need {count} {category}, {style}.",
]
STYLES = {
    "commas": "with commas between them",
    "and": "with the word and between them",
    "numbered": "as a numbered list",
    "dashes": "one per line with a dash",
}
COUNT_WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
KNOWN = {word: category for category, members in CATEGORIES.items() for word in members}


def render(items: list[str], style: str) -> str:
    """The items in one of the `STYLES`."""
    if style == "numbered":
        return " ".join(f"{i}. {item}" for i, item in enumerate(items, 1))
    if style == "dashes":
        return "\n" + "\n".join(f"- {item}" for item in items)
    return (", " if style == "commas" else " and ").join(items)


def items_in(text: str, category: str) -> tuple[list[str], int]:
    """The members of `category` in `text`, in order and as often as named, and the number of others."""
    found = [w for w in re.findall(r"[a-z]+", text.lower()) if w in KNOWN or w in CATEGORIES[category]]
    inside = [w for w in found if w in CATEGORIES[category]]
    return inside, len(found) - len(inside)


def _one_spacing(text: str, style: str) -> str:
    """The text with the spaces that `render` sets; numbered items may stand on lines of their own."""
    if style == "numbered":
        return re.sub(r"\s+", " ", text.lower())
    return re.sub(r" *\n+ *", "\n", text.lower())


class ListSkill:
    name = "lists"

    def contents(self) -> list[Facts]:
        return [
            {"category": category, "count": count, "style": style}
            for category in CATEGORIES
            for count in COUNT_WORDS
            for style in STYLES
        ]

    def ask(self, facts: Facts, draw: Random) -> list[Message]:
        count, style = COUNT_WORDS[number_of(facts, "count")], STYLES[text_of(facts, "style")]
        return [user(draw.choice(ASK).format(count=count, category=facts["category"], style=style))]

    def right(self, facts: Facts, draw: Random) -> str:
        return self._say(
            facts, number_of(facts, "count"), text_of(facts, "style"), text_of(facts, "category"), draw
        )

    def wrong(self, facts: Facts, draw: Random) -> str:
        count, style, category = (
            number_of(facts, "count"),
            text_of(facts, "style"),
            text_of(facts, "category"),
        )
        slip = draw.random()
        if slip < 0.4:
            style = draw.choice([s for s in STYLES if s != style])
        elif slip < 0.8:
            count = draw.choice([c for c in range(1, 7) if c != count])
        else:
            category = draw.choice([c for c in CATEGORIES if c != category])
        return self._say(facts, count, style, category, draw)

    def correctness(self, facts: Facts, text: str) -> float:
        """Up to 0.6 for the right number of members, 0.4 for the format; -0.3 where none is named."""
        count, category = number_of(facts, "count"), text_of(facts, "category")
        items, strangers = items_in(text, category)
        if not items:
            return -0.3
        misses = abs(len(set(items)) - count) + (len(items) - len(set(items))) + strangers
        in_style = render(items, text_of(facts, "style")).strip() in _one_spacing(
            text, text_of(facts, "style")
        )
        return 0.6 * max(0.0, 1 - misses / count) + (0.4 if in_style and len(items) > 1 else 0.0)

    def topic(self, facts: Facts) -> list[str]:
        category = text_of(facts, "category")
        return [category, *CATEGORIES[category]]

    def prose(self, facts: Facts, draw: Random) -> str:
        category = text_of(facts, "category")
        some = draw.sample(CATEGORIES[category], 3)
        return f"There are many {category} here, such as {some[0]}, {some[1]} and {some[2]}."

    def _say(self, facts: Facts, count: int, style: str, category: str, draw: Random) -> str:
        body = render(draw.sample(CATEGORIES[category], count), style)
        end = "" if style == "dashes" else "."
        lead = draw.choice(["", f"Here are {COUNT_WORDS.get(count, 'one')} {category}: "])
        return f"{lead}{body}{end}".strip()
